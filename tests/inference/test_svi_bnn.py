"""The command ``svi_bnn``: its run folder, resuming, bad input."""

import json
import math

import arviz
import pytest

from data.errors import UserError
from inference.bnn import plots
from inference.bnn.comparison import Agreement
from inference.bnn.report import BnnRecord
from inference.svi_bnn import main as svi_bnn
from tests.conftest import explore_elsewhere, kill_midway
from tests.pictures import assert_tags

TINY = ["--data", "curve", "--hidden", "10", "--epochs", "4", "--rounds", "2", "--posteriors", "2", "--batch", "30"]
TINY += ["--samples", "8", "--progress", "false"]
ALGORITHMS = ["deterministic", "vanilla", "fixed-prior", "beta-bnn", "online"]


def numbers(run) -> list[dict]:
    """The records, without what differs from run to run."""
    return [record | {"seconds": None} for record in json.loads(run.metrics.read_text())["results"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return svi_bnn([*TINY, "--out", str(tmp_path_factory.mktemp("bnn") / "run")])


@pytest.mark.slow
class TestCommand:
    def test_run_folder_holds_what_is_promised(self, run):
        metrics = json.loads(run.metrics.read_text())
        assert metrics.keys() == {"command", "dataset", "seed", "seconds", "results"}
        test = [r for r in metrics["results"] if r["split"] == "test"]
        assert [r["algorithm"] for r in test] == ALGORITHMS
        for record in metrics["results"]:
            assert record.keys() == BnnRecord.__annotations__.keys() - {"auroc", *Agreement._fields}
        assert {p.stem for p in run.plots.glob("*.png")} == {"learning_curves", "rate_distortion", "regression"}

    def test_every_posterior_is_saved_by_name(self, run):
        """InferenceData that ArviZ reads and compares where there is no Sibyl; the last one's is ``posterior.nc``."""
        found = explore_elsewhere(run.path)
        assert found["files"].keys() == found["ranking"].keys() == set(ALGORITHMS)
        for name, file in found["files"].items():
            known = {key: file["attributes"][key] for key in ("command", "method", "dataset", "seed")}
            assert known == {"command": "svi_bnn", "method": name, "dataset": "curve", "seed": "0"}
            assert len(file["loo"]) == 120, "training items"
            assert ("prior" in file["groups"]) == (name != "deterministic")
            assert found["ranking"][name] == pytest.approx(sum(file["loo"]))
        assert found["chosen"] == found["files"]["online"]

    def test_posteriors_name_layers_and_units(self, run):
        data = arviz.from_netcdf(run.posteriors / "vanilla.nc")
        assert data.posterior["1.weight"].dims == ("chain", "draw", "1.unit", "1.input")
        assert data.predictions["y"].dims == ("chain", "draw", "item")
        assert data.predictions_constant_data["log_predictive_density"].shape == (100,)

    def test_a_failing_plot_costs_itself_and_a_line(self, tmp_path, monkeypatch, capsys):
        def broken(records, **about):
            raise RuntimeError("no ink")

        monkeypatch.setattr(plots, "rate_distortion_curve", broken)
        run = svi_bnn([*TINY, "--epochs", "1", "--algorithms", "fixed-prior", "--out", str(tmp_path / "run")])
        assert {p.stem for p in run.plots.glob("*.png")} == {"learning_curves", "regression"}
        assert run.metrics.exists()
        assert "no ink" in capsys.readouterr().out

    def test_classification_has_reliability_and_entropy(self, tmp_path):
        small = ["--hidden", "8", "--train-size", "200", "--epochs", "2", "--rounds", "2", "--posteriors", "2", "--beta", "1"]
        run = svi_bnn([*small, "--samples", "4", "--progress", "false", "--out", str(tmp_path / "run")])
        assert {p.stem for p in run.plots.glob("*.png")} == {"learning_curves", "reliability", "entropy"}
        assert_tags(run, {"pictures", "test", "train"})
        records = json.loads(run.metrics.read_text())["results"]
        for name in ("accuracy", "ece", "train_accuracy", "gap", "auroc"):
            assert all(isinstance(r[name], float) for r in records), name
        mixture = [r for r in records if r["algorithm"] in ("beta-bnn", "online")]
        assert all(r["information"] <= math.log(2) + 1e-6 for r in mixture)

    def test_every_approximation_stands_beside_nuts(self, tmp_path, capsys):
        pytest.importorskip("laplace")
        names = ["deterministic", "last-layer", "low-rank", "laplace", "swag", "nuts"]
        options = [
            "--algorithms",
            ",".join(names),
            "--noise",
            "0.1",
            "--prior-scale",
            "1",
            "--train-size",
            "10",
            "--hidden",
            "2",
        ]
        options += ["--chains", "4", "--warmup", "4", "--draws", "8", "--rank", "2", "--epochs", "2", "--iterates", "2"]
        options += ["--step-size", "1e-3"]
        run = svi_bnn([*TINY, *options, "--out", str(tmp_path / "run")])
        records = json.loads(run.metrics.read_text())["results"]
        assert [record["algorithm"] for record in records] == names
        for record in records:
            assert all(math.isfinite(record[name]) for name in ("kl_inside", "kl_outside", "width", "seconds"))
            assert (record["r_hat"] is None) == (record["algorithm"] != "nuts")
            assert (record["evidence"] is None) == (record["algorithm"] != "laplace")
        printed = capsys.readouterr().out
        assert "beside nuts" in printed
        assert "−log evidence" in printed
        assert "last-layer: rate and −ELBO count 3 random weights of 7" in printed
        assert arviz.from_netcdf(run.posteriors / "nuts.nc").posterior.sizes["chain"] == 4
        again = json.loads(svi_bnn(["--resume", str(run.path)]).metrics.read_text())["results"]
        assert again == records, "all is read back"

    def test_killed_run_ends_with_the_numbers_of_an_unbroken_one(self, tmp_path):
        arguments = [*TINY, "--epochs", "24", "--rounds", "3", "--algorithms", "online", "--beta", "1"]
        whole = svi_bnn([*arguments, "--out", str(tmp_path / "whole")])
        kill_midway("svi_bnn", arguments, tmp_path / "broken", "online-beta1")
        broken = svi_bnn(["--resume", str(tmp_path / "broken")])
        first, second = (numbers(r) for r in (whole, broken))
        assert first == second


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--posteriors", "0"], "--posteriors 0: must be a whole number, above 0"),
            (["--beta", "-1"], "not a finite number, 0 or more"),
            (["--prior", "cauchy"], "--prior cauchy: choose gaussian"),
            (["--bootstrap-size", "1000"], "n_b must not exceed n"),
            (["--likelihood", "cauchy"], "--likelihood cauchy: choose categorical"),
            (["--likelihood", "categorical"], "real targets"),
            (["--algorithms", "magic"], "--algorithms magic: magic is unknown: choose vanilla"),
            (["--epochs", "5"], "--epochs 5 must be a multiple of --rounds 2"),
            (
                ["--prior", "laplace", "--algorithms", "beta-bnn"],
                "--prior is of vanilla, last-layer, low-rank, laplace, swag, nuts",
            ),
            (
                ["--prior-scale", "2", "--algorithms", "fixed-prior,deterministic"],
                "--prior-scale is of vanilla, beta-bnn, online, last-layer, low-rank, laplace, swag, nuts, none of which",
            ),
            (["--prior-scales", "fan-in", "--algorithms", "deterministic"], "--prior-scales is of vanilla, beta-bnn"),
            (["--algorithms", "low-rank", "--rank", "9999"], "low-rank: --rank 9999 is more than the"),
            (["--algorithms", "beta-bnn", "--rounds", "1"], "beta-bnn: the mixture counts from the second round on"),
            (["--root", "images"], "the data set 'curve' is drawn, and reads no files: leave out --root images"),
            (["--network", "lenet"], "needs images"),
            (["--hidden", "ten"], "--hidden ten: ten is not a positive whole number"),
            (["--train-size", "100000"], "there are 120"),
            (["--data", "glyphs", "--network", "resnet18"], "deterministic: batch norm's running statistics"),
            (["--data", "nothing"], "unknown data set"),
            (["--data", "mnist"], "needs --root"),
        ],
    )
    def test_one_line_and_nothing_left(self, options, message, tmp_path):
        with pytest.raises(UserError) as error:
            svi_bnn([*TINY, *options, "--out", str(tmp_path / "run")])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
