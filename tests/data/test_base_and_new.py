"""Tasks of base and new classes."""

import pytest
import torch

from data.base_and_new import BaseAndNewSampler
from data.episodes import EpisodeSampler, TaskSpec
from tests.conftest import classes_of, marked_splits, splits_of

SPEC = TaskSpec(way=3, shot=2, queries=4)


def sampler(new: str, playing: bool) -> BaseAndNewSampler:
    parts = marked_splits()
    return BaseAndNewSampler(EpisodeSampler(parts[new], SPEC), parts["train"], playing=playing)


def test_base_classes_that_play_new_ones_are_not_among_the_known():
    episode = sampler("train", playing=True).sample(40, seed=1)
    assert episode.base_classes.shape == (40, 3), "six classes, of which three play"
    for support, known in zip(episode.support_x, episode.base_classes, strict=True):
        assert not set(classes_of(support).tolist()) & set(known.tolist())


def test_real_new_classes_leave_all_base_classes_known():
    episode = sampler("test", playing=False).sample(10, seed=1)
    assert episode.base_classes.shape == (10, 6)
    assert splits_of(episode.support_x) == {"test"}
    half = episode.query_x.shape[1] // 2
    assert splits_of(episode.query_x[:, :half]) == {"test"}
    assert splits_of(episode.query_x[:, half:]) == {"train"}


@pytest.mark.parametrize("playing", [True, False])
def test_labels_list_known_classes_first(playing):
    episode = sampler("train" if playing else "val", playing).sample(20, seed=2)
    base, half = episode.base_classes.shape[1], episode.query_x.shape[1] // 2
    for t in range(20):
        true = classes_of(episode.query_x[t])
        shown = episode.base_classes[t][episode.query_y[t, half:]]
        assert torch.equal(true[half:], shown), "a base query's label is the place of its class among the known"
        new = episode.query_y[t, :half] - base
        first_of = {int(y): int(c) for y, c in zip(episode.support_y[t], classes_of(episode.support_x[t]), strict=True)}
        assert [first_of[int(y)] for y in new] == true[:half].tolist()
        numbered = {int(y): int(c) for y, c in zip(episode.support_labels[t], classes_of(episode.support_x[t]), strict=True)}
        assert [numbered[int(y)] for y in episode.query_y[t, :half]] == true[:half].tolist(), "as the queries number them"


def test_moves_selects_and_hides_as_an_episode_does():
    episode = sampler("val", playing=False).sample(5, seed=3)
    part = episode.tasks(slice(1, 3)).to("cpu", dtype=torch.float64)
    assert part.support_x.dtype == torch.float64
    assert part.base_classes.dtype == torch.int64
    assert torch.equal(part.query_y, episode.query_y[1:3])
    assert part.way == 3
    assert part.unlabelled().query_y is None


def test_every_base_item_is_as_likely():
    drawn = sampler("test", playing=False)
    base_x = drawn.sample(3000, seed=5).query_x[:, SPEC.way * SPEC.queries :].flatten(0, 1)
    counts = base_x.unique(dim=0, return_counts=True)[1]
    assert len(counts) == len(drawn.base), "each of the base classes' items occurs"
    assert counts.max() < 1.4 * counts.min()


@pytest.mark.parametrize("playing", [True, False])
def test_same_tasks_of_mapped_items(playing):
    drawn = sampler("train" if playing else "val", playing)
    mapped, plain = drawn.on(-drawn.items).sample(6, seed=4), drawn.sample(6, seed=4)
    assert torch.equal(mapped.support_x, -plain.support_x)
    assert torch.equal(mapped.query_x, -plain.query_x)
    assert torch.equal(mapped.query_y, plain.query_y)
    assert torch.equal(mapped.base_classes, plain.base_classes)
