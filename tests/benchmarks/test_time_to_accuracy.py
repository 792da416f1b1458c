"""Seconds until an accuracy: what is counted, on which tasks who is read, and who is said to have reached what."""

import argparse
import json
from functools import partial

import pytest
import torch

from benchmarks import time_to_accuracy
from benchmarks.original_sib import classifier_of, train_original
from benchmarks.speed import timing
from benchmarks.time_to_accuracy import ORIGINAL, Point, Stopwatch, first_at, first_to_stay, main, our_point, verdict
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed
from inference.meta.learner import TEST_SEED
from inference.meta.training import MetaTraining
from inference.runs.tensors import save_features
from tests.conftest import marked_splits, splits_of

FEATURES = marked_splits(classes=6, images=40)
FAKE = '''
import torch

class ClassifierSIB(torch.nn.Module):
    """Nearest mean, by the interface of the authors' class."""

    def __init__(self, way, features, steps):
        super().__init__()
        self.way, self.scale = way, torch.nn.Parameter(torch.rand(()))

    def forward(self, support_x, support_y, query_x, rate):
        means = torch.nn.functional.one_hot(support_y, self.way).float().transpose(1, 2) @ support_x
        return -self.scale * torch.cdist(query_x, means)
'''


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> str:
    monkeypatch.delitem(time_to_accuracy.sys.modules, "sib", raising=False)
    (tmp_path / "sib.py").write_text(FAKE)
    yield str(tmp_path)
    time_to_accuracy.sys.modules.pop("sib", None)


def curve(*accuracies: float) -> list[Point]:
    return [Point("some", 100 * (i + 1), 10.0 * (i + 1), accuracy, 0.01) for i, accuracy in enumerate(accuracies)]


def test_a_stopwatch_leaves_blocks_out(monkeypatch):
    times = iter([5.0, 7.0, 17.0, 20.0])
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: next(times))
    watch = Stopwatch("wall")
    with watch.stopped():
        pass
    assert watch.seconds == 5.0


def test_the_original_has_an_accuracy_at_once_and_ours_to_stay():
    points = curve(0.4, 0.6, 0.5, 0.6, 0.7)
    assert first_at(points, 0.6).tasks == 200
    assert first_to_stay(points, 0.6).tasks == 400
    assert first_to_stay(points, 0.3).tasks == 100
    assert first_at(points, 0.8) is first_to_stay(points, 0.8) is None


def test_ours_is_held_against_all_of_the_original_and_against_its_first_time():
    lines = verdict({"its": curve(0.5, 0.7, 0.6)}, {"a": curve(0.6), "b": curve(0.5)}).splitlines()
    assert lines[-1] == "| its | 60.00 | 30.0 | 20.0 (200 tasks) | 100, 10.00 (1/3.0, 1/2.0) | not reached |"


def test_the_original_takes_whole_steps_on_tasks_of_its_seed(checkout):
    tasks, drawn = [], []

    class Watched(EpisodeSampler):
        def sample(self, number, *, seed):
            drawn.append((number, seed))
            return super().sample(number, seed=seed)

    classifier = classifier_of(checkout)(5, 8, 3)
    sampler, recipe = Watched(FEATURES["train"], TaskSpec()), (8, lambda p: torch.optim.SGD(p, 0.1))
    before = classifier.scale.clone()
    train_original(classifier, [sampler], tasks=20, recipe=recipe, seed=3, after=tasks.append)
    assert tasks == [8, 16]
    assert drawn == [(8, mix_seed(3, 0)), (8, mix_seed(3, 1))]
    assert classifier.scale != before


def test_the_original_is_trained_on_training_classes_and_its_readings_of_test_tasks_are_not_counted(checkout, monkeypatch):
    now, seen = 0.0, set()
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: now)

    class Watched(classifier_of(checkout)):
        def forward(self, *parts):
            nonlocal now
            tasks = len(parts[2])
            now += 1.0 if tasks == 8 else 100.0
            seen.add((tasks, *splits_of(parts[2])))
            return super().forward(*parts)

    chosen = argparse.Namespace(seed=0, clock="wall", test_tasks=3, original_tasks=32, every=16)
    found = time_to_accuracy.original_points("original, Adam 1e-3, 8 tasks a step", Watched, FEATURES, chosen)
    assert [(p.tasks, p.seconds) for p in found] == [(16, 2.0), (32, 4.0)]
    assert seen == {(8, "train"), (1, "test")}


def test_ours_is_trained_on_training_classes_and_its_validation_is_not_counted(monkeypatch):
    now, seen = 0.0, {}
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: now)
    validate, draw, test = MetaTraining.on_train_epoch_end, MetaTraining.draw, time_to_accuracy.run_learner

    def slow(module):
        nonlocal now
        now += 100.0
        seen["validation"] = splits_of(module.validation[0].source.items)
        validate(module)

    def watched(module, tasks, seed):
        nonlocal now
        now += 1.0
        episode = draw(module, tasks, seed)
        seen["training"] = seen.get("training", set()) | splits_of(episode.query_x)
        return episode

    def tested(learner, part, *rest):
        seen["test"] = splits_of(part.items)
        return test(learner, part, *rest)

    monkeypatch.setattr(MetaTraining, "on_train_epoch_end", slow)
    monkeypatch.setattr(MetaTraining, "draw", watched)
    monkeypatch.setattr(time_to_accuracy, "run_learner", tested)
    monkeypatch.setitem(time_to_accuracy.OURS, "ours, short", {"validations": 2, "validation_tasks": 3, "mixed": False})
    found = our_point("ours, short", FEATURES, 64, argparse.Namespace(seed=0, clock="wall", test_tasks=4))
    assert (found.tasks, found.seconds) == (64, 4.0), "4 steps of 16 tasks"
    assert seen == {"training": {"train"}, "validation": {"val"}, "test": {"test"}}


def test_all_are_read_on_the_same_test_tasks(checkout, tmp_path, monkeypatch, capsys):
    tested = []
    sample = EpisodeSampler.sample

    def watched(sampler, number, *, seed):
        episode = sample(sampler, number, seed=seed)
        if sampler.source.class_names == FEATURES["test"].class_names:
            tested.append((sampler.spec, seed))
        return episode

    monkeypatch.setattr(EpisodeSampler, "sample", watched)
    monkeypatch.setattr(time_to_accuracy, "OURS", {"ours, short": {"validations": 1, "validation_tasks": 3}})
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    save_features(tmp_path / "f.safetensors", FEATURES, {"dataset": "marked"})
    words = f"--original {checkout} --features {tmp_path / 'f.safetensors'} --original-tasks 140 --every 64 --tasks 64 20"
    shown = main([*words.split(), "--test-tasks", "4", "--json", str(tmp_path / "found.json")])
    points = json.loads((tmp_path / "found.json").read_text())["points"]
    theirs = [(name, n) for name, recipe in ORIGINAL.items() for n in (64, 128, 140 // recipe[0] * recipe[0])]
    lengths = [(p["name"], p["tasks"]) for p in points]
    assert lengths == [*dict.fromkeys(theirs), ("ours, short", 32), ("ours, short", 64)], "whole steps, the last among them"
    assert set(tested) == {(TaskSpec(5, 1, 15), mix_seed(mix_seed(TEST_SEED), 0))}
    assert shown in capsys.readouterr().out
    assert all(f"| {name} | {n} |" in shown for name, n in theirs)


def test_batches_are_compared_on_validation_classes(tmp_path, monkeypatch, capsys):
    read, trained = set(), []
    test, draw = time_to_accuracy.run_learner, MetaTraining.draw

    def tested(learner, part, *rest):
        read.update(splits_of(part.items))
        return test(learner, part, *rest)

    def watched(module, tasks, seed):
        trained.append((tasks, module.schedule.learning_rate))
        return draw(module, tasks, seed)

    monkeypatch.setattr(time_to_accuracy, "our_point", partial(after_the_first, time_to_accuracy.our_point))
    monkeypatch.setattr(time_to_accuracy, "run_learner", tested)
    monkeypatch.setattr(MetaTraining, "draw", watched)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    save_features(tmp_path / "f.safetensors", FEATURES, {"dataset": "marked"})
    words = f"--features {tmp_path / 'f.safetensors'} --tasks 20 --test-tasks 4"
    shown = main([*words.split(), *["--batches", "2", "5", "--rates", "1e-3", "1e-2"]])
    assert read == {"val"}
    assert set(trained) == {(batch, rate) for batch in (2, 5) for rate in (1e-3, 1e-2)}
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:]] == [
        f"| {batch} tasks a step, step size {rate}" for batch in (2, 5) for rate in ("0.001", "0.01")
    ]
    with pytest.raises(UserError, match="give a checkout of the original"):
        main(["--features", str(tmp_path / "none")])  # before any work


def after_the_first(point, name, features, tasks, chosen, *rest):
    """``our_point`` without the one that only gets a process going, and with little validation."""
    return (
        point(name, features, tasks, chosen, {**rest[0], "validations": 1, "validation_tasks": 3}, *rest[1:]) if rest else None
    )
