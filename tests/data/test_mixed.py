"""Batches of tasks of several kinds."""

import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.mixed import MixedSampler
from tests.conftest import gaussian_bank


def samplers():
    bank = gaussian_bank(images=60)
    return [EpisodeSampler(bank, TaskSpec(4, 1, 5, imbalance)) for imbalance in (None, 2.0)]


def balanced(episode) -> list[bool]:
    return [bool((torch.bincount(labels, minlength=4) == 5).all()) for labels in episode.query_y]


def test_kinds_take_turns():
    episode = MixedSampler(samplers()).sample(40, seed=3)
    kinds = balanced(episode)
    assert all(kinds[::2])
    assert sum(kinds[1::2]) <= 2, "Dirichlet(2) rarely draws equal counts"
    assert episode.way == 4
    assert episode.support_x.shape[:2] == (40, 4)
    assert episode.query_x.shape[:2] == episode.query_y.shape == (40, 20)


def test_equal_seeds_give_equal_tasks_and_odd_numbers_end_in_time():
    mixed = MixedSampler(samplers())
    one, two, other = (mixed.sample(5, seed=seed) for seed in (1, 1, 2))
    assert len(one.query_x) == 5
    assert torch.equal(one.query_x, two.query_x)
    assert not torch.equal(one.query_x, other.query_x)
    first, second = one.query_x[0], one.query_x[1]
    assert not torch.equal(first, second)
