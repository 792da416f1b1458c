"""The command on regression: what a run leaves, resuming, and one-line errors."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import arviz
import pytest

from data.errors import UserError
from inference.meta.regression_comparison import MetaRegressionStudy, by_nll
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_options import DEFAULT, RegressionOptions
from inference.meta.regression_scores import MetaRegressionRecord
from inference.runs.commands import read_command, run_command
from inference.runs.options import options_to_yaml
from inference.svi_meta import main as svi_meta
from tests.conftest import ROOT

TINY = ["--data", "linear", "--tasks", "200", "--test-tasks", "20", "--queries", "4"]
TIMED = {"adapt_ms", "tasks_per_second"}


def results(run):
    return json.loads(run.metrics.read_text())["results"]


def untimed(run):
    return [{key: value for key, value in row.items() if key not in TIMED} for row in results(run)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return svi_meta([*TINY, "--out", str(tmp_path_factory.mktemp("linear") / "run")])


@pytest.mark.slow
class TestRun:
    def test_every_default_method_has_a_row(self, run):
        tested = [row for row in results(run) if row["split"] == "test"]
        names = {f"{row['method']}:{row['given']}" if row["given"] else row["method"] for row in tested}
        assert names == set(DEFAULT["linear"])
        assert len(tested) == len(DEFAULT["linear"]) >= 14
        assert {row["reference"] for row in tested} == {"exact Bayes"}
        assert all(row["regret"] is not None and row["adapt_ms"] > 0 for row in tested)
        assert json.loads(run.metrics.read_text())["command"] == "svi_meta"

    def test_validation_chooses(self, run):
        best = min((row for row in results(run) if row["split"] == "val"), key=lambda row: row["nll"])["variant"]
        assert {row["variant"] for row in results(run) if row["selected"]} == {best}

    def test_pictures_and_posteriors(self, run):
        assert {path.stem for path in run.plots.glob("*.png")} == {"regret_against_time"}
        assert len(list(run.posteriors.glob("*.nc"))) == len(DEFAULT["linear"])
        data = arviz.from_netcdf(run.posteriors / "llama-linear-beta1-k5.nc")
        assert data.posterior["weights"].shape[2:] == (4, 3)

    def test_a_finished_run_says_the_same_again(self, run):
        before = untimed(run)
        again = svi_meta(["--resume", str(run.path)])
        assert untimed(again) == before


@pytest.mark.slow
def test_curves_are_drawn_of_sinusoids(tmp_path):
    small = ["--data", "sinusoids", "--methods", "maml:steps=1,cnp,conjugate", *TINY[2:]]
    run = svi_meta([*small, "--out", str(tmp_path / "run")])
    assert {path.stem for path in run.plots.glob("*.png")} == {"regret_against_time", "curves"}
    by_name = {row["method"]: row for row in results(run) if row["split"] == "test"}
    assert {name: row["adapted"] for name, row in by_name.items()} == {"maml": 1761, "cnp": 0, "conjugate": 40}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    words = [*TINY, "--tasks", "2000", "--methods", "ridge,cnp,maml"]
    whole = svi_meta([*words, "--out", str(tmp_path / "whole")])
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "inference.svi_meta", *words, "--out", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "ridge-linear-beta1-k0.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists()
    assert untimed(svi_meta(["--resume", str(out)])) == untimed(whole)


@pytest.mark.slow
def test_learned_ridge_regression_has_no_regret(tmp_path):
    words = ["--data", "linear", "--tasks", "20000", "--test-tasks", "300", "--methods", "ridge,conjugate,prior"]
    rows = {row["method"]: row for row in results(svi_meta([*words, "--out", str(tmp_path / "run")])) if row["split"] == "test"}
    for name in ("ridge", "conjugate"):
        assert abs(rows[name]["regret"]) < max(rows[name]["regret_ci95"], 2e-3)
    assert rows["prior"]["regret"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mamml"], "mamml: is unknown in regression"),
        (["--methods", "prototypical"], "prototypical: is unknown in regression: choose prior, fine-tuning"),
        (["--methods", "maml:stops=1"], "maml: no option 'stops' of this method: it has steps, test_steps, size"),
        (["--methods", "maml:steps=0"], "maml: `steps=0`: must be a whole number, above 0"),
        (["--methods", "cnp:width=-3"], "cnp: `width=-3`"),
        (["--methods", "prior:steps=2"], "prior: no option 'steps' of this method: it has none"),
        (
            ["--methods", "anil"],
            "anil cannot be run on --data linear: leave it out, or choose --data network or --data sinusoids or "
            "--data ambiguous",
        ),
        (["--way", "7"], "regression (--data linear) has no use for --way 7: leave it out"),
        (["--test-shot", "3", "--mixed", "false"], "has no use for --mixed false, --test-shot 3: leave it out"),
        *(
            (["--protocols", given], f"regression (--data linear) has no use for --protocols {given}: leave it out")
            for given in ("active", "semi", "imbalanced", "lwof", "standard,active")
        ),
        *(
            ([f"--{name}={value}"], f"regression (--data linear) has no use for --{name} {value}: leave it out")
            for name, value in {"backbone": "conv4-64", "mixed": "true", "protocols": "standard,imbalanced", "way": 5}.items()
        ),
        *(
            (["--asked", "3", flag, value], f"has no use for {flag} {value}, --asked 3: leave it out")
            for flag, value in (("--unlabelled", "0.5"), ("--train-features", "all"), ("--labels", "fixed"))
        ),
        (["--protocols", "actve"], "--protocols actve: actve is unknown"),
        (["--shot", "0"], "--shot 0"),
        (["--image-size", "32"], "has no use for --image-size 32"),
        (["--beta", "0", "--methods", "ridge"], "--beta 0 has no posterior"),
        (["--beta", "-1"], "-1 is not a finite number"),
        (["--tasks", "0"], "--tasks 0"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        run_command(lambda _: svi_meta(["--data", "linear", *arguments, "--out", str(tmp_path / "run")]))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "run").exists()


def test_a_runs_own_configuration_is_read_though_it_has_options_of_images(tmp_path):
    """Those that stand there as usual; others are refused there, too."""
    file = tmp_path / "config.yaml"
    file.write_text(text := options_to_yaml(RegressionOptions(data="sinusoids")))
    assert "backbone: conv4-64" in text
    assert "asked: 5" in text
    options, _ = read_command(RegressionOptions, "svi_meta", "", ["--config", str(file), "--shot", "3"])
    assert options == RegressionOptions(data="sinusoids", shot=3)
    file.write_text(text.replace("asked: 5", "asked: 6"))
    with pytest.raises(UserError, match=r"`data=sinusoids`\) has no use for `asked=6`"):
        read_command(RegressionOptions, "svi_meta", "", ["--config", str(file)])


def test_a_runs_older_configuration_goes_on(tmp_path):
    text = options_to_yaml(RegressionOptions(data="sinusoids"))
    (tmp_path / "config.yaml").write_text("".join(line for line in text.splitlines(True) if not line.startswith("asked")))
    options, _ = read_command(RegressionOptions, "svi_meta", "", ["--resume", str(tmp_path), "--devices", "1"])
    assert options == RegressionOptions(data="sinusoids")


def test_methods_are_written_in_one_way():
    given = RegressionOptions(data="sinusoids", methods="maml:first_order:steps=1 , maml:steps=1:first_order=true,sib:steps=3")
    assert given.methods == ("maml:steps=1:first_order", "sib")
    names = [variant.name for variant in RegressionOptions(data="linear", methods="maml,ridge", beta="0.5,1").variants()]
    assert names == ["maml-linear-delta-k5", "ridge-linear-beta0.5-k0", "ridge-linear-beta1-k0"]


@pytest.mark.parametrize("data", DEFAULT)
def test_default_methods_can_be_run_and_have_names_of_their_own(data):
    variants = RegressionOptions(data=data).variants()
    assert len({variant.name for variant in variants}) == len(DEFAULT[data]) >= 7
    assert all(data in REGRESSION_METHODS[variant.method].problems for variant in variants)


def test_what_ran_away_comes_last_and_has_dashes():
    fields = MetaRegressionRecord.__dataclass_fields__
    calm = MetaRegressionRecord(**dict.fromkeys(fields, 1.0) | {"method": "a", "given": "", "split": "test", "steps": 1})
    wild = MetaRegressionRecord(**vars(calm) | {"method": "b", "nll": None, "mse": None, "regret": None})
    assert by_nll(wild) == math.inf
    text = MetaRegressionStudy(RegressionOptions(data="linear")).report(RegressionOptions(data="linear").problem, [wild, calm])
    first, second = text.splitlines()[2:4]
    assert " a, β = 1 " in first
    assert second.split()[4:8] == ["b,", "β", "=", "1"] or " b, β = 1 " in second
    assert " - " in second
