"""Semi-supervised tasks: how many labels are gone, whose, and nothing else."""

import pytest
import torch

from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.errors import UserError
from data.regression import sinusoid_tasks
from data.semi_supervised import UNLABELLED, SemiSampler, Unlabelled, labelled_part, partly_unlabelled, present, sealed
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


def test_where_each_class_keeps_one_no_share_is_too_much():
    part = partly_unlabelled(tasks(), 0.95, seed=1, keep_one=True).support_y
    assert (part != UNLABELLED).sum(-1).tolist() == [4] * 300
    assert torch.equal(partly_unlabelled(tasks(shot=1), 0.8, seed=1, keep_one=True).support_y, tasks(shot=1).support_y)


def rows(x, y):
    """Items with their labels, sortable."""
    return sorted((*item, label) for item, label in zip(x.tolist(), y.tolist(), strict=True))


def test_how_unlabelled_items_are_presented():
    episode = tasks(3)
    part = partly_unlabelled(episode, 0.6, seed=1)
    assert present(part, Unlabelled.SUPPORT) is part
    assert torch.equal(present(episode, Unlabelled.SUPPORT, part.support_y >= 0).support_y, part.support_y)
    known, apart = part.support_y != UNLABELLED, present(part, Unlabelled.LEFT_OUT)
    beside = present(part, Unlabelled.QUERIES)
    for t in range(3):
        own = rows(part.support_x[t][known[t]], part.support_y[t][known[t]])
        assert rows(apart.support_x[t], apart.support_y[t]) == own
        assert torch.equal(apart.support_y[t], part.support_y[t][known[t]]), "in their order"
        others = beside.query_x[t, 12:]
        assert rows(others, beside.query_y[t, 12:]) == rows(part.support_x[t][~known[t]], part.support_y[t][~known[t]])
    assert all(a is b for a, b in zip(apart[2:], part[2:], strict=True))
    assert torch.equal(beside.support_x, apart.support_x)
    assert torch.equal(beside.query_x[:, :12], part.query_x)
    assert torch.equal(beside.query_y[:, :12], part.query_y)
    assert present(part.unlabelled(), Unlabelled.QUERIES).query_y is None


def test_of_targets_it_is_said_which_are_known():
    episode = sinusoid_tasks(2, support=4)
    known = torch.tensor([[True, False, True, False], [False, True, True, False]])
    for how in (Unlabelled.LEFT_OUT, Unlabelled.QUERIES):
        seen = present(episode, how, known)
        assert torch.equal(seen.support_y, episode.support_y[known].view(2, 2))
        assert torch.equal(seen.support_x, episode.support_x[known].view(2, 2, -1))


def test_tasks_with_different_numbers_of_labels_are_refused():
    with pytest.raises(UserError, match="equally many labels"):
        labelled_part(tasks(2), torch.tensor([[True] * 20, [True] * 19 + [False]]))


def test_a_sampler_of_such_tasks():
    sampler = EpisodeSampler(gaussian_bank(), TaskSpec(4, 5, 3))
    semi, now_and_then = SemiSampler(sampler, 0.6), SemiSampler(sampler, 0.95, every=2)
    assert semi.spec is sampler.spec
    for seed in range(5):
        drawn, usual = semi.sample(7, seed=seed), sampler.sample(7, seed=seed)
        assert torch.equal(drawn.support_x, usual.support_x), "the same tasks"
        assert (drawn.support_y != UNLABELLED).sum(-1).tolist() == [8] * 7
    left = [int((now_and_then.sample(1, seed=seed).support_y != UNLABELLED).sum()) for seed in range(40)]
    assert set(left) == {4, 20}
    assert 8 <= left.count(20) <= 32


def test_sealed_labels_are_those_that_are_hidden_and_can_be_opened():
    episode = tasks()
    hidden, asked = (partly_unlabelled(episode, 0.6, seed=1, askable=askable) for askable in (False, True))
    gone = hidden.support_y == UNLABELLED
    assert torch.equal(asked.support_y < UNLABELLED, gone), "the same items, and no label that anybody takes for one"
    assert torch.equal(asked.support_y.where(~gone, sealed(asked.support_y)), episode.support_y)
    assert torch.equal(asked.support_y[~gone], episode.support_y[~gone])
    for how in (Unlabelled.LEFT_OUT, Unlabelled.QUERIES):
        for one, other in zip(present(asked, how), present(hidden, how), strict=True):
            assert one is other or torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    sampler = EpisodeSampler(gaussian_bank(), TaskSpec(4, 5, 3))
    one, other = (SemiSampler(sampler, 0.6, askable=askable).sample(7, seed=2) for askable in (False, True))
    assert torch.equal(other.support_y.clamp_min(UNLABELLED), one.support_y)
    assert bool((other.support_y < UNLABELLED).any())
