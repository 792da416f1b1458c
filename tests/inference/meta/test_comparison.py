"""Records of many methods: what is counted, timed and shared, against what it is by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from data.episodes import EpisodeSampler
from inference.evaluation.evaluate import TASKS_AT_ONCE
from inference.meta import comparison, method_training, stages
from inference.meta.comparison import MetaRecord, format_comparison, own_measures, record_of, timing
from inference.meta.comparison_plots import accuracy_against_time, named, reliabilities
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner
from inference.meta.mapping import feature_space, map_items
from inference.meta.report import choose as comparison_choice
from inference.meta.settings import GuideSettings, settings
from inference.runs.files import write_json
from inference.runs.folder import RunFolder
from tests.conftest import gaussian_bank

BANK = gaussian_bank(classes=8, images=30, dim=10, noise=1.0)


def learner(method: str, **given) -> tuple[FittedLearner, MetaOptions]:
    options = MetaOptions(methods=method, queries=5, test_tasks=30, **given)
    chosen = settings(GuideSettings, options)
    variant = options.variants()[0]
    space, means = feature_space(chosen, variant.predictor, BANK)
    return FittedLearner.build(variant, chosen, options.spec(), space, means, None, "bank"), options


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir(parents=True)
    return folder


def test_what_is_shared_is_what_is_learned_counted_once(run):
    one, options = learner("anil:steps=2")
    found = own_measures(one, options, run)
    space, directions = 10 * 7, 7  # rank 7 of 8 classes
    assert found["shared"] == space + 1 + directions + 2  # map, scale, start, step sizes
    one.guide.start.loc.requires_grad_(False)
    assert own_measures(one, options, run)["shared"] == found["shared"] - directions
    assert (found["given"], found["train_features"], found["tasks_per_second"]) == ("steps=2", "linear", None)
    assert own_measures(*learner("fine-tuning"), run) == {
        "given": "",
        "train_features": "none",
        "tasks_per_second": None,
        "shared": 0,
    }


def test_a_network_counts_where_it_is_the_methods_own(run):
    one, options = learner("prototypical")
    without = own_measures(one, options, run)["shared"]
    one.network = nn.Linear(3, 4)
    assert own_measures(one, options, run)["shared"] == without
    one.own_network = True
    assert own_measures(one, options, run)["shared"] == without + 16


def test_training_speed_is_tasks_by_seconds_of_training(run):
    one, options = learner("prototypical", tasks=600)
    write_json(run.seconds_file, {one.variant.name: 4.0, "evaluate": 100.0})
    assert own_measures(one, options, run)["tasks_per_second"] == 150.0
    assert own_measures(one, replace(options, patience=1), run)["tasks_per_second"] is None, "it may have stopped early"


def test_timing_is_of_a_task(monkeypatch):
    one, options = learner("r2d2:posterior=full")
    sampler = EpisodeSampler(map_items(one.space, BANK), options.spec())
    times = iter([10.0, 12.5])
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: next(times))
    found = timing(one, sampler, 0)
    assert found["adapt_ms"] == pytest.approx(2500 / comparison.TIMED_TASKS)
    assert found["adapted"] == 5 * 7
    assert found["rate_against"] == "learned"
    assert found["diverged"] == 0.0


def test_tasks_that_run_away_are_counted(monkeypatch):
    one, options = learner("anil:size=1e30:learned=false")
    sampler = EpisodeSampler(map_items(one.space, BANK), options.spec())
    losses = torch.ones(comparison.TIMED_TASKS)
    losses[:3] = torch.tensor([1001.0, torch.inf, torch.nan])
    losses[3] = 999.0
    parts = iter(losses.split(TASKS_AT_ONCE))
    monkeypatch.setattr("inference.evaluation.predictive.Predictive.distortion", lambda self, labels: next(parts))
    assert timing(one, sampler, 0)["diverged"] == pytest.approx(3 / comparison.TIMED_TASKS)


def test_a_record_says_what_is_measured_of_test_tasks_alone():
    one, options = learner("tpn")
    part = map_items(one.space, BANK)
    own = {"given": "", "train_features": "linear", "tasks_per_second": None, "shared": 3}
    tested, validated = (record_of(one, part, options.spec(), split, 20, own) for split in ("test", "val"))
    assert (tested.split, tested.transductive, tested.rate, tested.rate_against, tested.adapted) == (
        "test",
        True,
        None,
        None,
        0,
    )
    assert tested.support_information > 0
    assert (validated.transductive, validated.adapt_ms, validated.support_information) == (None, None, None)
    assert tested.accuracy == validated.accuracy, "of the same classes and tasks"
    assert tested.episodes == 20


def records():
    usual = record_of(learner("anil")[0], map_items(learner("anil")[0].space, BANK), learner("anil")[1].spec(), "test", 20, {})
    return [replace(usual, nll=0.9, method="b", adapt_ms=2.0), replace(usual, nll=0.5, method="a", given="steps=2", beta=0.1)]


def test_the_table_has_the_best_first_and_dashes_where_there_is_nothing():
    first, second = format_comparison(records()).splitlines()[1:]
    assert "a:steps=2, β = 0.1" in first
    assert " b " in second
    assert " - " in second


def test_pictures_have_a_panel_or_a_point_for_each_method():
    made: list[MetaRecord] = records()
    figure = accuracy_against_time(made, about="a run")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [named(r) for r in made]
    probabilities = torch.softmax(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), -1)
    pooled = {named(r): (probabilities, probabilities.argmax(-1)) for r in made}
    panels = reliabilities(pooled, ece={named(r): 0.125 for r in made}, about="a run").axes
    assert [axis.get_title() for axis in panels] == [f"{named(r)}\nECE 12.5 %" for r in made]


@pytest.mark.parametrize(
    ("predictors", "start"),
    [
        (("distance", "linear"), "features"),
        (("network", "network"), "images"),
        (("linear", "network"), "features (of networks: images)"),
    ],
)
def test_times_begin_with_what_methods_read(predictors, start):
    made = [replace(record, predictor=name) for record, name in zip(records(), predictors, strict=True)]
    figure = accuracy_against_time(made)
    assert [axis.get_xlabel() for axis in figure.axes] == [f"time per task (ms), from {start} to predictions"] * 2


def test_a_method_that_runs_away_is_counted_and_comes_last():
    one, options = learner("anil")
    one.model.predictor.log_scale.data.fill_(torch.nan)
    found = record_of(one, map_items(one.space, BANK), options.spec(), "test", 20, {})
    assert (found.nll, found.distortion, found.diverged) == (None, None, 1.0)
    good = replace(found, nll=1.0, method="good")
    assert "good" in format_comparison([found, good]).splitlines()[1]
    assert comparison_choice([replace(found, split="val"), replace(good, split="val")]).method == "good"


def test_fixed_sizes_and_strengths_are_fixed():
    (fixed, _), (learned, _) = learner("r2d2:posterior=full:learned=false"), learner("anil:learned=false:per_feature")
    assert {n for n, p in fixed.objective.named_parameters() if p.requires_grad} == {"model.predictor.log_scale"}
    assert learned.guide.rule.log_size.requires_grad, "sizes for each dimension are learned, or there were no need of them"


@pytest.mark.parametrize(("method", "against"), [("gaussian-classes", "support"), ("sib", "learned"), ("anil", None)])
def test_which_prior_a_rate_is_against(method, against):
    one, options = learner(method)
    assert timing(one, EpisodeSampler(map_items(one.space, BANK), options.spec()), 0)["rate_against"] == against


@pytest.mark.parametrize(("method", "weights"), [("anil", None), ("llama", None), ("sib", 4)])
def test_steps_before_the_last_count_where_the_method_says_so(method, weights, monkeypatch, run):
    found = []
    monkeypatch.setattr(method_training, "train", lambda module, *_, **__: found.append(module.weights))
    one, options = learner(method, tasks=32, validation_tasks=4)
    stages.meta_train(one, options, {"train": BANK, "val": BANK}, run)
    assert found == [None] if weights is None else len(found[0]) == weights
