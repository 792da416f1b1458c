"""Semi-supervised tasks: how many labels are gone, whose, and nothing else."""

import pytest
import torch

from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.errors import UserError
from data.regression import sinusoid_tasks
from data.semi_supervised import UNLABELLED, partly_unlabelled
from tests.conftest import gaussian_bank


def tasks(count=300, shot=5):
    return EpisodeSampler(gaussian_bank(), TaskSpec(4, shot, 3)).sample(count, seed=0)


@pytest.mark.parametrize(("share", "left"), [(0.0, 5), (0.2, 4), (0.6, 2), (0.8, 1)])
def test_every_class_keeps_as_many_labels(share, left):
    episode = tasks()
    part = partly_unlabelled(episode, share, seed=1)
    known = part.support_y != UNLABELLED
    assert torch.equal(part.support_y[known], episode.support_y[known]), "the other labels are as they were"
    for c in range(4):
        assert (((episode.support_y == c) & known).sum(-1) == left).all()
    assert all(a is b for a, b in zip(part[2:], episode[2:], strict=True))
    assert torch.equal(part.support_x, episode.support_x)


def test_each_item_is_as_likely_and_tasks_differ():
    known = partly_unlabelled(tasks(2000), 0.4, seed=1).support_y != UNLABELLED
    assert float((known.float().mean(0) - 0.6).abs().max()) < 4 * (0.24 / 2000) ** 0.5
    one, two, other = (partly_unlabelled(tasks(), 0.4, seed=seed).support_y for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_classes_of_any_order_and_number_lose_their_own_share():
    labels = torch.tensor([[0, 1, 0, 1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]])
    x = torch.zeros(2, 10, 3)
    part = partly_unlabelled(Episode(x, labels, x, None, 2), 0.5, seed=0).support_y
    assert [(part == c).sum(-1).tolist() for c in (UNLABELLED, 0, 1)] == [[5, 5], [2, 2], [3, 3]]


@pytest.mark.parametrize("share", [0.95, 1.0, 1.5, -0.1, "half", float("nan")])
def test_a_share_that_leaves_no_label_is_refused(share):
    with pytest.raises(UserError, match="`share="):
        partly_unlabelled(tasks(2), share, seed=0)


def test_regression_is_refused():
    with pytest.raises(UserError, match="regression"):
        partly_unlabelled(sinusoid_tasks(2), 0.5, seed=0)
