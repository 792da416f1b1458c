"""The episode sampler: right shapes, no leaks, seeded, balanced or not."""

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.items import LabelledItems, split_classes
from data.seeding import mix_seed


def numbered(counts=(30, 30, 25, 40, 31)):
    """Items whose value tells their class and number: class · 1000 + number, in shuffled order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    items = labels * 1000 + torch.cat([torch.arange(n) for n in counts])
    order = torch.randperm(len(items))
    return LabelledItems(items[order, None].float(), labels[order], tuple("abcde"[: len(counts)]))


@pytest.mark.parametrize("imbalance", [None, 2.0, 0.3])
@pytest.mark.parametrize(("way", "shot", "queries"), [(2, 1, 3), (5, 5, 15), (3, 2, 10)])
def test_tasks_are_what_they_claim(way, shot, queries, imbalance):
    sampler = EpisodeSampler(numbered(), TaskSpec(way, shot, queries, imbalance))
    episode = sampler.sample(50, seed=3)
    assert episode.support_x.shape == (50, way * shot, 1)
    assert episode.query_x.shape == (50, way * queries, 1)
    for t in range(50):
        support, query = episode.support_x[t, :, 0], episode.query_x[t, :, 0]
        values = torch.cat([support, query])
        assert len(values.unique()) == len(values), "an item appears twice in a task"
        class_of = {int(y): int(x) // 1000 for x, y in zip(support, episode.support_y[t], strict=True)}
        assert len(set(class_of.values())) == way
        assert all(int(x) // 1000 == class_of[int(y)] for x, y in zip(query, episode.query_y[t], strict=True))
    counts = torch.stack([torch.bincount(y, minlength=way) for y in episode.query_y])
    if imbalance is None:
        assert (counts == queries).all()
    else:
        assert (counts.sum(-1) == way * queries).all()
        assert counts.float().std() > 0


def test_imbalanced_proportions_are_dirichlet():
    items = LabelledItems(torch.arange(5000.0)[:, None], torch.arange(5).repeat_interleave(1000), tuple("abcde"))
    episode = EpisodeSampler(items, TaskSpec(5, 1, 100, imbalance=2.0)).sample(4000, seed=0)
    share = torch.stack([torch.bincount(y, minlength=5) for y in episode.query_y]) / 500
    expected = torch.distributions.Dirichlet(torch.full((5,), 2.0))
    torch.testing.assert_close(share.mean(0), expected.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(share.var(0), expected.variance, atol=0.002, rtol=0)


def test_every_item_and_class_is_equally_likely():
    sampler = EpisodeSampler(numbered((20, 20, 20)), TaskSpec(2, 1, 3))
    support, query, _, classes = sampler.sample_indices(20_000, seed=0)
    for index in (support, query):
        frequency = torch.bincount(index.flatten(), minlength=60) / index.numel()
        torch.testing.assert_close(frequency, torch.full((60,), 1 / 60), atol=0.002, rtol=0)
    assert (torch.bincount(classes.flatten()) / classes.numel() - 1 / 3).abs().max() < 0.01


def test_seed_decides():
    sampler = EpisodeSampler(numbered(), TaskSpec(3, 1, 5))
    first, again, other = (sampler.sample(4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.query_x, again.query_x)
    assert not torch.equal(first.query_x, other.query_x)


def test_neighbouring_seeds_are_unrelated():
    seeds = [mix_seed(0, epoch, batch) for epoch in range(40) for batch in range(40)]
    assert len(set(seeds)) == 1600
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bad_tasks_are_named():
    with pytest.raises(UserError, match="too few for 6-way"):
        EpisodeSampler(numbered(), TaskSpec(6), split="test split")
    with pytest.raises(UserError, match="'c' has 25 images"):
        EpisodeSampler(numbered(), TaskSpec(5, 11, 15))
    for bad in ({"way": 1}, {"shot": 0}, {"queries": 0}, {"imbalance": 0.0}):
        with pytest.raises(UserError):
            TaskSpec(**bad)


def test_hold_out_keeps_the_rest():
    kept, held = numbered().hold_out(10)
    assert (held.counts == 10).all()
    assert torch.equal(kept.counts + 10, numbered().counts)
    assert not set(kept.items[:, 0].tolist()) & set(held.items[:, 0].tolist())
    with pytest.raises(UserError, match="hold out"):
        numbered().hold_out(25)


def test_class_split_is_seeded_and_complete():
    names = [f"c{i}" for i in range(100)]
    split = split_classes(names, 0)
    assert split == split_classes(names[::-1], 0) != split_classes(names, 1)
    assert [list(split.values()).count(s) for s in ("train", "val", "test")] == [64, 16, 20]
    with pytest.raises(UserError, match="at least 3"):
        split_classes(["a", "b"], 0)
