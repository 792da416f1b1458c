"""Tasks to train on and to choose by."""

import pickle
from dataclasses import replace

import pytest
import torch

from data.ambiguous import sampler_of
from data.fixed_labels import FixedLabelSampler
from inference.meta.family_options import MetaOptions
from inference.meta.options import SibOptions
from inference.meta.tasks import deciding, kinds, ranges, training_tasks
from tests.conftest import classes_of, gaussian_bank, marked_splits


def test_samplers_are_sent_to_processes_that_are_started():
    sampler = training_tasks(SibOptions(way=3, queries=4), marked_splits(images=60)["train"])
    sent = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(sent.sample(4, seed=0).query_x, sampler.sample(4, seed=0).query_x)


def lettered(*sizes):
    bank = gaussian_bank(sum(sizes), 30)
    names = tuple(f"{'ABCDE'[a]}/{i}" for a, size in enumerate(sizes) for i in range(size))
    return replace(bank, class_names=names)


def test_tasks_within_alphabets_have_as_many_ways_as_the_smallest_alphabet():
    parts = {"train": lettered(9, 12), "val": lettered(6, 22, 22)}
    options = SibOptions(way=5, queries=4, within_alphabet="train")
    assert ranges(options, parts["train"])[0] == (5, 9)
    assert ranges(SibOptions(way=5, queries=4, within_alphabet="test"), parts["train"])[0] == (5, 20)
    for sampler in deciding(options, parts):
        assert sampler.spec.within_alphabet
    assert {sampler.spec.way for sampler in deciding(options, parts)} == {5, 6}
    assert max(training_tasks(options, parts["train"]).sample(2, seed=seed).way for seed in range(30)) == 9


@pytest.mark.parametrize(("chosen", "trains", "tests"), [("none", 0, 0), ("train", 1, 0), ("test", 0, 1), ("all", 1, 1)])
def test_training_and_test_can_be_within_alphabets_or_not(chosen, trains, tests):
    options = SibOptions(within_alphabet=chosen, test_way="5,20")
    assert options.spec().within_alphabet == trains
    assert [spec.within_alphabet for spec in options.test_specs()] == [bool(tests)] * 4


def test_classes_keep_their_labels_in_training_and_validation_and_not_in_tests():
    """Of all shots, balanced or not."""
    options, parts = (
        MetaOptions(way=3, queries=4, train_shot="1-3", labels="fixed", seed=5),
        marked_splits(classes=8, images=60),
    )
    training = training_tasks(options, parts["train"])
    for split, drawn in (("train", training), *(("val", sampler) for sampler in kinds(options, parts["val"], "val"))):
        label_of = FixedLabelSampler(parts[split], options.spec()).label_of
        for seed in range(20):
            episode = drawn.sample(6, seed=seed)
            assert torch.equal(label_of[classes_of(episode.support_x)], episode.support_y)
            assert torch.equal(label_of[classes_of(episode.query_x)], episode.query_y)
    assert {training.sample(2, seed=seed).support_y.shape[1] for seed in range(20)} == {3, 6, 9}
    for spec in options.test_specs():
        episode = sampler_of(parts["test"], spec).sample(50, seed=0)
        pairs = torch.stack([classes_of(episode.support_x), episode.support_y]).flatten(1)
        assert pairs.unique(dim=1).shape[1] == 8 * 3
    assert MetaOptions().spec().partition is None
    assert options.spec().partition == 5
