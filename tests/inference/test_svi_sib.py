"""The commands end to end at tiny sizes: what a run leaves, resuming after a kill, and one-line errors."""

import json
import os
import shutil
from pathlib import Path

import arviz
import pytest
import torch
import yaml
from PIL import Image

from inference.meta.family_options import MetaOptions
from inference.meta.methods import METHODS
from inference.meta.options import MethodNames, SibOptions
from inference.meta.sib import SIB
from inference.predict import main as predict
from inference.runs.commands import run_command
from inference.runs.tensors import load_features, save_features
from inference.svi_sib import SibStudy, Source
from inference.svi_sib import main as svi_sib
from tests.conftest import explore_elsewhere, gaussian_bank, kill_midway
from tests.pictures import assert_tags

TINY = ["--tasks", "64", "--validations", "2", "--validation-tasks", "40", "--test-tasks", "30", "--queries", "5"]
TINY += ["--progress", "false"]
MC_STEPS = ["--gradient", "mlp", "--inner-samples", "2", "--inner-lr", "1e-3", "--units", "weights"]
RECORD = {
    "split": str,
    "steps": int,
    "way": int,
    "shot": int,
    "queries": int,
    "balanced": bool,
    "episodes": int,
    "beta": float,
    "accuracy": float,
    "ci95": float,
    "nll": float,
    "ece": float,
    "brier": float,
    "rate": float,
    "distortion": float,
}


def feature_file(path: Path, **options) -> str:
    parts = {s: gaussian_bank(seed=i, **options) for i, s in enumerate(("train", "val", "test", "held_out"))}
    return str(save_features(path / "features.safetensors", parts))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arguments = ["--features", feature_file(folder), "--beta", "0.1,1", "--predictor", "distance,cosine", *TINY]
    return svi_sib([*arguments, "--out", str(folder / "run"), "--protocols", "standard,imbalanced,lwof"])


def draw_images(folder: Path) -> Path:
    """Twelve classes of coloured squares in one tree."""
    generator = torch.Generator().manual_seed(0)
    for c in range(12):
        (folder / f"class{c:02d}").mkdir(parents=True)
        for i in range(24):
            colour = (20 * c, 255 - 20 * c, int(torch.randint(255, (1,), generator=generator)))
            Image.new("RGB", (20, 20), colour).save(folder / f"class{c:02d}" / f"{i}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    return draw_images(tmp_path / "images")


@pytest.mark.slow
def test_run_folder_holds_what_is_promised(run):
    metrics = json.loads(run.metrics.read_text())
    assert metrics.keys() == {"command", "dataset", "seed", "seconds", "results"}
    for record in metrics["results"]:
        if record.get("protocol") == "lwof":
            assert 0 <= record["both_accuracy"] <= 1
            continue
        for name, kind in RECORD.items():
            assert isinstance(record[name], kind), (name, record[name])
    assert {r["steps"] for r in metrics["results"]} >= {0, 3}
    names = {p.stem for p in run.plots.glob("*.png")}
    assert names == {
        "training_curves",
        "accuracy_by_step",
        "reliability",
        "weight_posterior",
        "rate_distortion",
        "objective_by_step",
    }
    assert yaml.safe_load(run.config.read_text())["beta"] == "0.1,1"
    assert_tags(run, {"pictures", "test", "train", "val"})
    assert not [p for p in run.path.rglob(".*") if p.is_file()], "temporary files are left"


@pytest.mark.slow
def test_posterior_is_inference_data(run):
    data = arviz.from_netcdf(run.posterior)
    assert data.posterior["weights"].dims == ("chain", "draw", "task", "class", "feature")
    torch.testing.assert_close(torch.tensor(data.predictions["probabilities"].sum("class").values).mean(), torch.tensor(1.0))
    assert set(data.groups()) >= {"prior", "prior_predictive", "posterior_predictive", "predictions_constant_data"}
    assert data.observed_data["labels"].dims == ("task", "support"), "what the posterior was conditioned on, and nothing else"
    assert data.log_likelihood["labels"].dims == ("chain", "draw", "task", "support")
    assert data.attrs["method"] == "sib"
    assert data.attrs["dataset"] == "features", "the feature file's own name, as it names no data set"


@pytest.mark.slow
def test_posteriors_of_all_learners_are_explored_where_there_is_no_sibyl(run):
    found = explore_elsewhere(run.path)
    names = {f"{predictor}-beta{beta}-k{k}" for predictor in ("distance", "cosine") for beta in ("0.1", "1") for k in (0, 3)}
    assert found["ranking"].keys() == names, "all of the same tasks"
    assert found["files"].keys() == names | {f"lwof-{name}" for name in names}
    assert all(name.removeprefix("lwof-") == file["attributes"]["variant"] for name, file in found["files"].items())
    selected = {
        r["variant"] for r in json.loads(run.metrics.read_text())["results"] if r.get("selected") and not r["reference"]
    }
    assert {found["chosen"]["attributes"]["variant"]} == selected
    assert all(0.9 < r_hat < 1.1 for r_hat in found["summary"]["r_hat"]), "chains are blocks of independent draws"


@pytest.mark.slow
def test_config_reads_back(run, tmp_path):
    again = svi_sib(["--config", str(run.config), "--out", str(tmp_path / "again"), "--protocols", "standard"])
    first, second = (json.loads(r.metrics.read_text())["results"] for r in (run, again))
    for record in second:
        assert record in first, "same seed, same machine, same numbers"


@pytest.mark.slow
def test_loaded_sib_gives_the_same_posterior(run):
    first, again = SIB.load(run), SIB.load(run.path)
    bank = load_features(run.features)["test"]
    support, query = bank.items[[0, 30, 60]][None], bank.items[[1, 2, 31, 61]][None]
    one, two = (s.posterior(support, torch.arange(3)[None], query) for s in (first, again))
    torch.testing.assert_close(one.probabilities(), two.probabilities(), rtol=0, atol=0)
    assert one.rate().shape == (1,)


@pytest.mark.slow
def test_images_to_posterior(images, tmp_path):
    out = tmp_path / "run"
    arguments = [
        "--data",
        "folder",
        "--root",
        str(images),
        "--image-size",
        "16",
        "--epochs",
        "1",
        "--way",
        "2",
        "--queries",
        "3",
    ]
    finished = svi_sib([*TINY, *arguments, "--out", str(out), "--beta", "0.1", "--protocols", "standard"])
    assert (finished.plots / "task_sheet.png").exists()
    sib = SIB.load(finished)
    assert sib.network is not None
    pictures = torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8)
    posterior = sib.posterior(pictures[:2], torch.tensor([0, 1]), pictures[2:])
    assert posterior.probabilities().shape == (1, 4, 2)
    assert posterior.sample(10).shape[:3] == (10, 1, 2)
    records = predict(
        ["--run", str(out), "--root", str(images), "--split", "all", "--way", "3", "--queries", "4", "--tasks", "9"]
    )
    assert records[0].way == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--posterior", "delta"],
        ["--prior", "mixture"],
        ["--prior", "hierarchical"],
        MC_STEPS,
        ["--gradient", "exact"],
        ["--initialisation", "learned"],
        ["--initialisation", "queries"],
        ["--predictor", "linear", "--rank", "4"],
    ],
)
def test_every_choice_trains(options, tmp_path):
    out = str(tmp_path / "run")
    common = ["--features", feature_file(tmp_path), "--beta", "0.1", "--out", out, "--protocols", "standard"]
    finished = svi_sib([*TINY, *common, *options])
    records = json.loads(finished.metrics.read_text())["results"]
    assert all(0 < r["accuracy"] <= 1 for r in records)
    assert all((r["rate"] is None) == ("delta" in options) for r in records)


@pytest.mark.slow
def test_early_stopping(tmp_path):
    common = ["--features", feature_file(tmp_path), "--beta", "0.1", "--protocols", "standard", *TINY]
    stopped = svi_sib([*common, "--patience", "1", "--validations", "6", "--out", str(tmp_path / "stopped")])
    assert stopped.metrics.exists()


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Arguments of a run that takes long enough to be killed midway."""
    images = draw_images(tmp_path_factory.mktemp("long") / "images")
    words = "--image-size 16 --epochs 6 --way 2 --queries 3 --tasks 2000 --validations 20 --validation-tasks 100"
    words += " --test-tasks 50 --beta 0.1 --progress false --protocols standard --data folder --root"
    return [*words.split(), str(images)]


@pytest.fixture(scope="module")
def unbroken(long, tmp_path_factory):
    return svi_sib([*long, "--out", str(tmp_path_factory.mktemp("unbroken") / "run")])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "distance-beta0.1-k3"])
def test_a_run_killed_midway_ends_with_the_numbers_of_an_unbroken_one(stage, long, unbroken, tmp_path):
    kill_midway("svi_sib", long, tmp_path / "broken", stage)
    resumed = svi_sib(["--resume", str(tmp_path / "broken")])
    first, second = (json.loads(run.metrics.read_text())["results"] for run in (unbroken, resumed))
    assert first == second


def error_of(arguments, capsys, command=svi_sib) -> str:
    """The message of a command that must fail with exit code 2 and one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run_command(lambda _: command([str(a) for a in arguments]))
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert error.startswith("error: ")
    return error


class TestErrors:
    """Bad input: one clear line, exit code 2, no traceback, no run folder left behind."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--data", "nonsense"], "unknown data set"),
            (["--data", "folder"], "needs --root"),
            (["--data", "folder", "--root", "/no/such/place"], "no such file or folder"),
            (["--way", "1"], "--way 1: must be a whole number, 2 or more"),
            (["--shot", "0"], "--shot 0: must be a whole number, above 0"),
            (["--way", "five"], "way"),
            (["--beta", "-1"], "not a finite number, 0 or more"),
            (["--beta", "0.1,lots"], "lots is not a finite number"),
            (["--steps", "-1"], "--steps -1: must be a whole number, 0 or more"),
            (["--predictor", "quadratic"], "quadratic is unknown: choose cosine, distance, linear"),
            (["--protocols", "easy"], "easy is unknown: choose standard, imbalanced, lwof"),
            (["--protocols", "lwof"], "--holdout"),
            (["--gradient", "magic"], "gradient"),
            (["--no-such-option", "1"], "no option --no-such-option"),
            (["--backbone", "conv-9000"], "unknown network"),
            (["--image-size", "8"], "too small"),
            (["--features", "/no/such/file"], "missing"),
            (["--config", "/no/such.yaml"], "config"),
            (["--resume", "/no/such/run"], "not a run folder"),
            (["--inner-lr", "0"], "--inner-lr 0: must be a number, above 0"),
        ],
    )
    @pytest.mark.slow
    def test_options(self, arguments, message, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert message in error_of(arguments, capsys)
        assert not list(tmp_path.iterdir()), "something was left behind"

    def test_no_gpu(self, capsys):
        assert "no GPU" in error_of(["--device", "cuda"], capsys)

    def test_too_few_classes_or_images(self, images, tmp_path, capsys):
        common = ["--data", "folder", "--root", images, "--image-size", "16", "--out", tmp_path / "run"]
        assert "too few for 5-way" in error_of([*common, "--queries", "3"], capsys)
        assert "fewer than shot + queries" in error_of([*common, "--way", "2", "--queries", "30"], capsys)
        assert not (tmp_path / "run").exists()

    def test_unreadable_image_is_named(self, images, tmp_path, capsys):
        (images / "class03" / "2.png").write_bytes(b"\x89PNG broken")
        error = error_of(["--data", "folder", "--root", images, "--image-size", "16", "--out", tmp_path / "run"], capsys)
        assert "class03/2.png" in error
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    def test_folder_in_use_and_damaged_run(self, run, tmp_path, capsys):
        assert "already holds a run" in error_of(["--features", run.features, "--out", run.path], capsys)
        broken = tmp_path / "broken"
        (broken / "checkpoints").mkdir(parents=True)
        (broken / "config.yaml").write_text("way: [")
        assert "damaged" in error_of(["--resume", broken], capsys)
        (broken / "config.yaml").write_text("wayy: 5")
        assert "damaged" in error_of(["--resume", broken], capsys)
        truncated = tmp_path / "features.safetensors"
        truncated.write_bytes(run.features.read_bytes()[:1000])
        assert "damaged" in error_of(["--features", truncated], capsys)

    @pytest.mark.slow
    def test_checkpoint_of_another_configuration(self, run, tmp_path, capsys):
        features = ["--features", feature_file(tmp_path, dim=6), "--beta", "0.1", "--protocols", "standard"]
        other = svi_sib([*TINY, *features, "--out", str(tmp_path / "other")])
        whole = shutil.copytree(run.path, tmp_path / "whole")
        guide = "checkpoints/distance-beta0.1-k3.safetensors"
        os.replace(other.path / guide, whole / guide)
        assert "another run's" in error_of(["--resume", whole], capsys)
        (whole / "manifest.json").unlink()  # as versions before 0.5 left it
        assert "another configuration" in error_of(["--resume", whole], capsys)
        (whole / guide).write_bytes(b"short")
        assert "damaged" in error_of(["--resume", whole], capsys)

    @pytest.mark.slow
    def test_truncated_checkpoint(self, run, tmp_path, capsys):
        whole = shutil.copytree(run.path, tmp_path / "whole")
        (whole / "checkpoints" / "distance-beta0.1-k3.safetensors").unlink()
        for name in ("last.ckpt", "previous.ckpt"):
            (whole / "checkpoints" / "distance-beta0.1-k3" / name).write_bytes(b"PK half")
        assert "cannot be resumed" in error_of(["--resume", whole], capsys)

    def test_loss_that_is_not_a_number(self, tmp_path, capsys):
        arguments = ["--features", feature_file(tmp_path), "--out", tmp_path / "run", "--learning-rate", "1e30", *TINY]
        assert "the loss became" in error_of(arguments, capsys)
        assert not (tmp_path / "run" / "metrics.json").exists()

    @pytest.mark.parametrize("rate", ["4.488464268668043e16", "1e30"])
    def test_regression_that_runs_away(self, rate, tmp_path, capsys):
        few = [
            "--queries",
            "4",
            "--tasks",
            "32",
            "--validation-tasks",
            "8",
            "--test-tasks",
            "8",
            "--beta",
            "0.1",
            "--steps",
            "1",
        ]
        said = error_of(["--data", "linear", *few, "--out", tmp_path / "run", "--learning-rate", rate], capsys)
        assert "the loss became NaN or infinite at step 1: training stopped; lower --learning-rate" in said
        assert "checkpoint" not in said


def test_every_method_is_documented():
    assert all(name in (MetaOptions.__doc__ or "") for name in METHODS)
    assert {"sib", "nearest-mean", "gaussian-classes"} <= set(MethodNames.known) < set(METHODS)


@pytest.mark.parametrize(("methods", "named"), [("sib,nearest-mean", True), ("nearest-mean", False)])
def test_title_names_the_posterior_where_there_is_one(methods, named):
    title = SibStudy(SibOptions(methods=methods)).report(Source(None, None), []).splitlines()[0]
    assert ("gaussian posterior, equivariant gradient network" in title) is named
