"""Tasks that are classes with real targets: of one class each, with their own items' targets."""

import pytest
import torch

from data.errors import UserError
from data.items import LabelledItems
from data.poses import TargetSampler


def sampler(counts=(12, 9, 10), **sizes):
    """Items whose value is class · 1000 + number, and whose target is a tenth of it, in shuffled order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    items = (labels * 1000 + torch.cat([torch.arange(n) for n in counts]))[torch.randperm(len(labels))]
    source = LabelledItems(items[:, None].double(), items // 1000, tuple("abc"))
    return TargetSampler(source, items / 10, **{"support": 4, "queries": 5} | sizes)


def test_a_task_is_of_one_class_with_the_targets_of_its_items():
    drawn = sampler()
    episode = drawn.sample(600, seed=1)
    assert episode.support_x.shape == (600, 4, 1)
    assert episode.query_y.shape == (600, 5)
    assert episode.way == 1
    for x, y in ((episode.support_x, episode.support_y), (episode.query_x, episode.query_y)):
        torch.testing.assert_close(x[..., 0] / 10, y.double(), atol=1e-4, rtol=0)
    items = torch.cat([episode.support_x, episode.query_x], 1)[..., 0]
    assert (items // 1000 == items[:, :1] // 1000).all()
    assert all(len(task.unique()) == 9 for task in items)
    assert set(items.unique().tolist()) == set(drawn.items[:, 0].tolist()), "all items are drawn"
    frequency = torch.bincount((items[:, 0] // 1000).long()) / 600
    assert float((frequency - 1 / 3).abs().max()) < 4 * (2 / 9 / 600) ** 0.5
    assert len({tuple(task.tolist()) for task in items}) > 590, "tasks of a class differ"


def test_tasks_are_seeded_and_the_same_of_other_items():
    drawn = sampler()
    one, two, other = (drawn.sample(5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.query_x, two.query_x)
    assert not torch.equal(one.query_x, other.query_x)
    torch.testing.assert_close(drawn.on(2 * drawn.items).sample(5, seed=1).query_x, 2 * one.query_x)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="lower `support` or `queries`"):
        sampler(queries=6)
    with pytest.raises(UserError, match="each item needs one"):
        TargetSampler(sampler().source, torch.zeros(3))
    with pytest.raises(UserError, match="`tasks="):
        sampler().sample(0, seed=0)
