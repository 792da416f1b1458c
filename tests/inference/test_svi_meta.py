"""The command on many methods: what a run leaves, resuming, prediction from its run folders, and one-line errors."""

import json
import math

import arviz
import pytest
import torch

from inference.meta import source
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner
from inference.predict import main as predict
from inference.runs.commands import run_command
from inference.svi_meta import main as svi_meta
from inference.svi_sib import main as svi_sib
from tests.conftest import kill_midway
from tests.inference.test_svi_sib import draw_images, feature_file
from tests.pictures import assert_tags

TINY = ["--tasks", "64", "--validations", "2", "--validation-tasks", "40", "--test-tasks", "30", "--queries", "5"]
TINY += ["--progress", "false"]
METHODS = "prototypical,anil:steps=2,r2d2:posterior=full,tpn"
IMAGES = ["--data", "folder", "--image-size", "16", "--backbone", "conv4-8", "--epochs", "1", "--train-features", "all"]
IMAGES += ["--network-tasks", "8", "--network-batch", "4", "--way", "2", "--train-shot", "1", "--protocols", "standard"]


def error_of(arguments, capsys, command=svi_meta):
    """What the command says as it refuses; one line, exit code 2."""
    with pytest.raises(SystemExit) as end:
        run_command(lambda _: command([str(a) for a in arguments]))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arguments = ["--features", feature_file(folder), "--methods", METHODS, "--test-shot", "1,2", *TINY]
    return svi_meta([*arguments, "--out", str(folder / "run")])


@pytest.fixture(scope="module")
def records(run):
    return json.loads(run.metrics.read_text())["results"]


@pytest.mark.slow
class TestRun:
    def test_every_method_is_tested_on_every_kind_of_tasks(self, run, records):
        tests = [r for r in records if r["split"] == "test"]
        assert len(tests) == 4 * 2 * 2
        assert {r["method"] for r in tests} == {"prototypical", "anil", "r2d2", "tpn"}
        assert {(r["shot"], r["balanced"]) for r in tests} == {(1, True), (1, False), (2, True), (2, False)}
        assert json.loads(run.metrics.read_text())["command"] == "svi_meta"

    def test_records_have_what_only_they_have(self, records):
        by_name = {r["variant"]: r for r in records if r["split"] == "test" and r["balanced"] and r["shot"] == 1}
        assert set(by_name) == {
            "prototypical-distance-k0",
            "anil-steps=2-linear-delta-k2",
            "r2d2-posterior=full-linear-beta0.1-k0",
            "tpn-distance-k0",
        }
        anil, proto, ridge, tpn = (by_name[name] for name in sorted(by_name))
        assert [r["transductive"] for r in (proto, anil, ridge, tpn)] == [False, False, False, True]
        assert [r["adapted"] for r in (proto, anil, ridge, tpn)] == [0, 5 * 10, 5 * 10, 0]
        assert [r["rate_against"] for r in (proto, anil, ridge, tpn)] == [None, None, "learned", None]
        assert (anil["given"], anil["train_features"], anil["diverged"]) == ("steps=2", "linear", 0.0)
        assert all(0 < r["support_information"] <= math.log(20) for r in by_name.values())
        assert all(r["query_information"] == 0 for r in (proto, anil, ridge))
        assert tpn["query_information"] != 0
        assert all(r["adapt_ms"] > 0 and r["tasks_per_second"] > 0 for r in by_name.values())

    def test_one_is_chosen_on_validation_tasks(self, records):
        best = min((r for r in records if r["split"] == "val"), key=lambda r: r["nll"])["variant"]
        assert {r["variant"] for r in records if r["selected"]} == {best}

    def test_pictures_posteriors_and_tags(self, run):
        assert {p.stem for p in run.plots.glob("*.png")} == {"accuracy_against_time", "training_curves", "reliability"}
        assert len(list(run.posteriors.glob("*.nc"))) == 4
        data = arviz.from_netcdf(run.posteriors / "r2d2-posterior=full-linear-beta0.1-k0.nc")
        assert data.posterior["weights"].dims == ("chain", "draw", "task", "class", "feature")
        assert_tags(run, {"pictures", "test", "train", "val"})

    def test_its_runs_predict_and_load(self, run):
        found = predict(["--run", str(run.path), "--variant", "anil-steps=2-linear-delta-k2", "--way", "7", "--tasks", "20"])
        assert [r.steps for r in found] == [0, 1, 2]
        assert found[-1].accuracy > 0.5
        learner = FittedLearner.load(run.path, "anil-steps=2-linear-delta-k2")
        assert (learner.variant.given, learner.guide.steps) == ("steps=2", 2)


@pytest.mark.slow
def test_support_items_without_a_label_have_rows_of_their_own(tmp_path, capsys):
    arguments = ["--features", feature_file(tmp_path), "--methods", "prototypical,tpn,graph:width=4:layers=1", *TINY]
    run = svi_meta([*arguments, "--shot", "3", "--unlabelled", "0.6", "--protocols", "semi", "--out", str(tmp_path / "run")])
    tests = [r for r in json.loads(run.metrics.read_text())["results"] if r["split"] == "test"]
    assert {(r["method"], r["unlabelled"]) for r in tests} == {
        *((name, "left-out") for name in ("prototypical", "tpn", "graph")),
        *((name, "support") for name in ("tpn", "graph")),
    }
    assert {r["labels"] for r in tests} == {1}
    assert all((r["gain"] is not None) is (r["unlabelled"] == "support") for r in tests)
    said = capsys.readouterr().out
    assert "1 of 3 labels, others unlabelled" in said
    assert "gain: of accuracy" in said
    assert_tags(run, {"pictures", "test", "train", "val"})


@pytest.mark.slow
def test_labels_that_are_asked_for_have_rows_and_a_picture(tmp_path, capsys):
    methods = "prototypical,r2d2:posterior=full,graph-active:width=4:layers=1"
    arguments = ["--features", feature_file(tmp_path), "--methods", methods, *TINY, "--shot", "3", "--unlabelled", "0.6"]
    run = svi_meta([*arguments, "--asked", "2", "--protocols", "active", "--out", str(tmp_path / "run")])
    tests = [r for r in json.loads(run.metrics.read_text())["results"] if r["split"] == "test"]
    assert {(r["method"], r["acquisition"], r["asked"]) for r in tests} == {
        *(("prototypical", a, 2) for a in ("random", "entropy")),
        *(("r2d2", a, 2) for a in ("random", "entropy", "bald")),
        *(("graph-active", a, 1) for a in ("random", "attention")),
    }
    assert all((r["gain"] is None) is (r["acquisition"] == "random") for r in tests)
    assert all(r["accuracy"] == pytest.approx(r["after"][-1]) and len(r["after_ci95"]) == r["asked"] + 1 for r in tests)
    said = capsys.readouterr().out
    assert "1 of 3 labels, 2 more by bald" in said
    assert "gain of labels that are asked for" in said
    assert (run.plots / "labels_asked_for.png").exists()
    assert_tags(run, {"pictures", "test", "train", "val"})
    resumed = svi_meta(["--resume", str(run.path)])
    assert [r for r in json.loads(resumed.metrics.read_text())["results"] if r["split"] == "test"] == tests


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    arguments = ["--features", feature_file(tmp_path), "--methods", "prototypical,anil", *TINY, "--tasks", "320"]
    whole = svi_meta([*arguments, "--out", str(tmp_path / "whole")])
    kill_midway("svi_meta", arguments, tmp_path / "killed", "anil-linear-delta-k5")
    resumed = svi_meta(["--resume", str(tmp_path / "killed")])
    first, second = (json.loads(r.metrics.read_text())["results"] for r in (whole, resumed))
    timed = {"adapt_ms", "tasks_per_second"}
    assert [{k: v for k, v in r.items() if k not in timed} for r in first] == [
        {k: v for k, v in r.items() if k not in timed} for r in second
    ]


@pytest.mark.slow
def test_each_method_trains_a_network_of_its_own_and_keeps_it(tmp_path):
    root = draw_images(tmp_path / "images")
    run = svi_meta([*IMAGES, "--root", str(root), "--methods", "prototypical,r2d2", *TINY, "--out", str(tmp_path / "run")])
    first, second = (FittedLearner.load(run.path, name) for name in ("prototypical-distance-k0", "r2d2-linear-delta-k0"))
    assert first.own_network
    weights = [torch.cat([p.flatten() for p in learner.network.parameters()]) for learner in (first, second)]
    assert not torch.equal(*weights)
    again = svi_meta(["--resume", str(run.path)])
    assert (
        json.loads(again.metrics.read_text())["results"][0]["accuracy"]
        == json.loads(run.metrics.read_text())["results"][0]["accuracy"]
    )
    records = [r for r in json.loads(run.metrics.read_text())["results"] if r["split"] == "test"]
    assert {r["train_features"] for r in records} == {"all"}
    assert all(r["shared"] > 1000 for r in records), "the network counts where it is the method's own"


@pytest.mark.slow
def test_weights_that_are_random_for_all_tasks_are_trained_on_labels_that_classes_keep(tmp_path, capsys):
    """Also what is said of their rate, and that a run that ends early goes on to the same numbers."""
    arguments = [*IMAGES, "--root", str(draw_images(tmp_path / "images")), "--labels", "fixed", "--train-features", "linear"]
    arguments += ["--methods", "maml:adapted=head,mr-maml:adapted=block:tested=means", "--beta", "0.3", *TINY]
    run = svi_meta([*arguments, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    tests = {r["method"]: r for r in json.loads(run.metrics.read_text())["results"] if r["split"] == "test"}
    random, plain = tests["mr-maml"], tests["maml"]
    assert plain["shared_rate"] is None
    assert random["rate"] is None
    assert f"{random['shared_rate']:.0f} once" in said
    assert (plain["adapted"], random["adapted"]) == (8 * 2 + 2, 8 * 8 * 9 + 2 * 8 + 8 * 2 + 2)
    assert plain["train_features"] == random["train_features"] == "all"
    assert "labels: fixed" in run.config.read_text()
    kill_midway("svi_meta", arguments, tmp_path / "killed", "mr-maml-adapted=block-tested=means-network-beta0.3-k5")
    resumed = json.loads(svi_meta(["--resume", str(tmp_path / "killed")]).metrics.read_text())["results"]
    numbers = [[r[name] for r in rows] for name in ("nll", "shared_rate") for rows in (resumed, [*tests.values()])]
    assert set(numbers[0]) >= set(numbers[1])
    assert set(numbers[2]) >= set(numbers[3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "prototipical"], "prototipical is unknown: choose sib, nearest-mean"),
        (["--methods", "anil:stops=3"], "anil: no option 'stops' of this method: it has steps, size"),
        (["--methods", "anil:steps=0"], "anil: `steps=0`: must be a whole number, above 0"),
        (["--methods", "anil:steps=2:steps=3"], "anil: `steps` is given twice"),
        (["--methods", "sib:steps=3"], "sib: no option 'steps' of this method: it has none"),
        (["--methods", ""], "at least one"),
        (["--methods", "graph", "--train-way", "5-7"], "graph takes tasks of one number of classes"),
        (["--holdout", "50"], "--holdout 50 says nothing to svi_meta"),
        (["--test-steps", "0"], "--test-steps 0 says nothing to svi_meta"),
        (["--methods", "llama,sib", "--beta", "0"], "llama has no posterior at β = 0"),
        (["--methods", "tpn:alpha=1"], "tpn: `alpha=1` must be below 1"),
        (["--methods", "tpn:neighbours=1"], "tpn: `neighbours=1`: must be a whole number, 2 or more"),
        (["--protocols", "lwof"], "the lwof protocol is SIB's"),
        (["--protocols", "semi"], "by --unlabelled 0.8 the semi protocol hides 1 of a class's 1 labels"),
        (["--unlabelled", "2"], "--unlabelled 2 is a share of the semi protocol's support"),
        (["--protocols", "semi", "--shot", "5", "--unlabelled", "2"], "hides 10 of a class's 5 labels"),
        (["--protocols", "active"], "by --unlabelled 0.8 the active protocol hides 1 of a class's 1 labels"),
        (["--asked", "3"], "--asked 3 is about the active protocol: add it to --protocols"),
        (["--protocols", "active", "--shot", "5", "--asked", "21"], "--asked 21 is more than the 20 hidden labels of a task"),
        (["--methods", "graph-active"], "graph-active learns which label to ask for: add active to --protocols"),
        (["--data", "glyph-attributes", "--methods", "graph-active"], "those of attributes are all known: choose graph"),
        (
            ["--data", "glyph-descriptions", "--protocols", "active"],
            "one of --data glyph-descriptions has a single description",
        ),
        (["--data", "glyph-descriptions", "--protocols", "semi"], "the semi protocol hides some labels of a class"),
        (["--labels", "fixed", "--train-way", "5-7"], "(--labels fixed, --way 5): leave out --train-way 5-7"),
        (["--labels", "fixed", "--within-alphabet", "all"], "are of all alphabets: leave out --within-alphabet all"),
        (["--labels", "fixed", "--data", "glyph-descriptions"], "are of descriptions, and no class keeps a label"),
        (["--labels", "fixed", "--data", "glyph-attributes"], "are of attributes, and no class keeps a label"),
        (["--data", "sinusoid"], "unknown data set 'sinusoid'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path):
    assert message in error_of([*arguments, "--out", tmp_path / "run"], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [svi_meta, svi_sib])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--way", "91"], "val split: 90 classes are too few for 91-way tasks: lower --way"),
        (["--test-way", "5,241"], "test split: 240 classes are too few for 241-way tasks: lower --way"),
        (["--data", "glyph-descriptions", "--way", "2000"], "train split: 240 classes are too few for 2000-way tasks"),
    ],
)
def test_a_way_beyond_known_classes_is_refused_before_they_are_drawn(command, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(source, "load_data", lambda *_, **__: pytest.fail("data are loaded"))
    assert message in error_of(arguments, capsys, command)


def test_a_network_cannot_be_trained_on_features(capsys, tmp_path):
    given = ["--features", feature_file(tmp_path), "--train-features", "all", "--out", tmp_path / "run"]
    assert "a feature file has no images to train a network on" in error_of(given, capsys)


def test_options_of_methods_are_written_in_one_way():
    assert MetaOptions(methods="anil:first_order:steps=5, anil:steps=7 : first_order=true").methods == (
        "anil:first_order",
        "anil:steps=7:first_order",
    )
    assert [v.name for v in MetaOptions(methods="sib,r2d2:posterior=full", beta="0.1,1").variants()] == [
        *("distance-beta0.1-k3", "distance-beta1-k3"),
        *("r2d2-posterior=full-linear-beta0.1-k0", "r2d2-posterior=full-linear-beta1-k0"),
    ]
