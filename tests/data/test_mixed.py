"""Batches of tasks of several kinds."""

from collections import Counter

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.mixed import Extent, MixedSampler, VariedSampler
from inference.runs.values import read_extent
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


def varied(ways=(4, 8), shots=(1, 3)) -> VariedSampler:
    bank = gaussian_bank(classes=9, images=30)
    return VariedSampler(lambda spec: EpisodeSampler(bank, spec), TaskSpec(4, 2, 6), Extent(*ways), Extent(*shots))


def test_half_of_the_batches_have_the_usual_way_and_half_the_usual_shot():
    sampler, seen = varied(), []
    for seed in range(400):
        episode = sampler.sample(2, seed=seed)
        seen.append((episode.way, episode.support_x.shape[1] // episode.way, episode.query_x.shape[1]))
    ways, shots = Counter(way for way, _, _ in seen), Counter(shot for _, shot, _ in seen)
    assert set(ways) == set(range(4, 9))
    assert set(shots) == {1, 2, 3}
    assert ways[4] / 400 == pytest.approx(0.5 + 0.5 / 5, abs=0.08)
    assert shots[2] / 400 == pytest.approx(0.5 + 0.5 / 3, abs=0.08)
    fewest = {4: 6, 5: 4, 6: 4, 7: 3, 8: 3}  # of a class, where a task is to have 24, or a few less
    each = Counter((way, queries // way) for way, _, queries in seen)
    assert set(each) == {(way, n) for way in fewest for n in range(fewest[way], 7)}, "from there to the usual six"
    assert all(queries % way == 0 for way, _, queries in seen)


def test_equal_seeds_give_equal_shapes_and_tasks():
    one, two = (varied().sample(3, seed=8) for _ in range(2))
    assert one.way == two.way
    assert torch.equal(one.query_x, two.query_x)


def test_the_same_tasks_of_other_items():
    mixed = MixedSampler(samplers())
    other = mixed.on(2 * mixed.items)
    torch.testing.assert_close(other.sample(6, seed=1).query_x, 2 * mixed.sample(6, seed=1).query_x)


@pytest.mark.parametrize(("given", "text"), [("5-20", "5-20"), ("5", "5"), (7, "7"), ((2, 9), "2-9")])
def test_ranges_are_read_and_written(given, text):
    assert str(read_extent(given)) == text
    assert read_extent(text) == read_extent(given)


@pytest.mark.parametrize("given", ["20-5", "0-3", "a", "1-2-3", "", "-5"])
def test_what_is_no_range_is_refused(given):
    with pytest.raises(ValueError, match="range"):
        read_extent(given)
