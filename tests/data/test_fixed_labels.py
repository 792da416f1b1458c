"""Fixed labels: a class keeps its label from task to task, and otherwise tasks are as ever."""

import pytest
import torch

from data.ambiguous import sampler_of
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.fixed_labels import FixedLabelSampler
from data.items import LabelledItems
from tests.conftest import classes_of, marked_splits


def sampler(classes=14, way=4, **options):
    return FixedLabelSampler(marked_splits(classes=classes)["train"], TaskSpec(way, 2, 5, **options))


def test_a_class_has_one_label_in_support_and_queries_of_all_tasks():
    drawn = sampler()
    episode = drawn.sample(2000, seed=1)
    for x, y in ((episode.support_x, episode.support_y), (episode.query_x, episode.query_y)):
        assert torch.equal(drawn.label_of[classes_of(x)], y)
    assert episode.way == 4
    assert (torch.stack([torch.bincount(y, minlength=4) for y in episode.query_y]) == 5).all()


def test_classes_are_dealt_out_evenly_and_by_the_seed_of_the_partition():
    assert sorted(torch.bincount(sampler().label_of).tolist()) == [3, 3, 4, 4]
    assert torch.equal(sampler().label_of, sampler(partition=0).label_of)
    others = [sampler(partition=seed).label_of for seed in range(400)]
    assert not torch.equal(others[0], others[1])
    share = (torch.stack(others) == 0).float().mean(0)  # each class has label 0, one of four with 4 of 14, as often
    assert float((share - 4 / 14).abs().max()) < 4 * (0.25 / 400) ** 0.5


def test_each_class_of_a_label_is_as_likely_and_labels_are_independent():
    drawn = sampler(classes=8)
    classes = classes_of(drawn.sample(4000, seed=2).support_x)[:, ::2]  # [tasks, way]
    frequency = torch.bincount(classes.flatten(), minlength=8) / 4000
    assert float((frequency - 0.5).abs().max()) < 4 * 0.5 / 4000**0.5
    first = (classes == classes.amin(0)).double()
    assert float((torch.corrcoef(first.mT) - torch.eye(4)).abs().max()) < 4 / 4000**0.5


def test_tasks_are_seeded_and_the_same_of_other_items():
    drawn = sampler()
    one, two, other = (drawn.sample(5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.query_x, two.query_x)
    assert not torch.equal(one.query_x, other.query_x)
    torch.testing.assert_close(drawn.on(2 * drawn.items).sample(5, seed=1).query_x, 2 * one.query_x)


def test_a_spec_says_whether_classes_keep_their_labels():
    part = marked_splits(classes=14)["train"]
    kept, anew = sampler_of(part, TaskSpec(4, 2, 5, partition=3)), sampler_of(part, TaskSpec(4, 2, 5))
    assert torch.equal(kept.label_of, sampler(partition=3).label_of)
    assert type(anew) is EpisodeSampler


def test_unequal_numbers_of_queries_have_the_same_labels():
    drawn = FixedLabelSampler(marked_splits(classes=9, images=60)["train"], TaskSpec(4, 2, 5, imbalance=2.0, partition=3))
    episode = drawn.sample(500, seed=1)
    assert torch.equal(drawn.label_of[classes_of(episode.query_x)], episode.query_y)
    assert torch.equal(drawn.label_of, sampler(classes=9, partition=3).label_of)
    assert any((torch.bincount(y, minlength=4) != 5).any() for y in episode.query_y)


def test_what_cannot_be_is_refused():
    part = marked_splits()["train"]
    named = LabelledItems(part.items, part.labels, tuple(f"one/{i}" for i in range(6)))
    with pytest.raises(UserError, match="within_alphabet"):
        FixedLabelSampler(named, TaskSpec(4, 2, 5, within_alphabet=True))
    with pytest.raises(UserError, match="too few"):
        sampler(classes=3)
    with pytest.raises(UserError, match="`partition="):
        sampler(partition=-1)
    for given in ({"within_alphabet": True}, {"described": True}, {"way": 2, "attributes": "unambiguous"}):
        with pytest.raises(UserError, match="leave out `partition`"):
            TaskSpec(partition=0, **given)
