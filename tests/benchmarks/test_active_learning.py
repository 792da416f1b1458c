"""Labels that are chosen against labels at random, with the methods of finished runs: what is counted, and of which tasks."""

import json

import pytest
import torch

from benchmarks.active_learning import main, measured, of_regression, rows_of
from inference.active import Acquisition
from inference.meta.regression_options import RegressionOptions
from inference.svi_meta import main as svi_meta
from tests.inference.test_svi_meta import TINY
from tests.inference.test_svi_sib import feature_file


def test_gains_are_of_the_same_tasks_and_positive_where_they_are_better():
    random, chosen = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 1.0, 3.0]])
    both = {Acquisition.RANDOM: {"mse": random, "accuracy": random}, Acquisition.BALD: {"mse": chosen, "accuracy": chosen}}
    (of_random, less), (_, fewer) = (list(rows_of("m", both, measure)) for measure in ("mse", "accuracy"))
    assert less["gain"] == pytest.approx([2.5 / 3])
    assert fewer["gain"] == pytest.approx([-2.5 / 3])
    assert of_random["gain"] == [0.0]
    assert less["gain_ci95"] == pytest.approx([1.96 * (1 / 12) ** 0.5 / 3**0.5])
    assert (less["mean"], less["acquisition"], less["method"]) == (pytest.approx([1.5]), "bald", "m")


@pytest.mark.slow
def test_on_a_run_of_features(tmp_path, capsys):
    arguments = ["--features", feature_file(tmp_path), "--methods", "prototypical,r2d2:posterior=full", *TINY]
    run = svi_meta([*arguments, "--protocols", "standard", "--out", str(tmp_path / "run")])
    main([str(run.path), "--tasks", "60", "--labels", "2", "--pool", "1"])
    found = json.loads((run.path / "active.json").read_text())
    rows = found["results"]
    assert (found["tasks"], found["labels"]) == (60, 2)
    asked = {(row["method"], row["acquisition"]) for row in rows}
    ridge = "r2d2:posterior=full, β = 0.1"
    assert asked == {
        ("prototypical", "random"),
        ("prototypical", "entropy"),
        *((ridge, a) for a in ("random", "entropy", "bald")),
    }
    assert all(len(row["mean"]) == 3 and row["gain"][0] == 0 for row in rows), "the first labels are the same"
    assert (run.plots / "active_accuracy.png").exists()
    assert "gain at 2" in capsys.readouterr().out


@pytest.mark.slow
def test_on_a_run_of_regression(tmp_path):
    arguments = ["--data", "linear", "--methods", "conjugate,maml:steps=1", "--tasks", "100", "--test-tasks", "20"]
    run = svi_meta([*arguments, "--queries", "5", "--out", str(tmp_path / "run"), "--progress", "false"])
    options = RegressionOptions(data="linear", methods="conjugate,maml:steps=1", tasks=100, test_tasks=20, queries=5)
    conjugate, maml = of_regression(run, options, 100)
    curves = measured(conjugate, 3)
    assert list(curves) == ["random", "variance", "bald"]
    assert curves["bald"]["mse"].shape == (4, 100)
    assert torch.equal(curves["bald"]["mse"], curves["variance"]["mse"]), "of equal noise both want the same"
    assert list(measured(maml, 1)) == ["random", "variance"], "a point knows nothing that a label would tell"
    main([str(run.path), "--tasks", "50", "--labels", "2"])
    assert (run.plots / "active_mse.png").exists()


@pytest.mark.slow
def test_pools_of_problems_with_fewer_support_points_have_as_many(tmp_path):
    arguments = ["--data", "ambiguous", "--methods", "cnp", "--tasks", "50", "--test-tasks", "4", "--progress", "false"]
    run = svi_meta([*arguments, "--out", str(tmp_path / "run")])
    main([str(run.path), "--tasks", "50", "--labels", "1"])
    (row, *_) = json.loads((run.path / "active.json").read_text())["results"]
    assert (row["method"], row["measure"], len(row["mean"])) == ("cnp", "mse", 2)
    options = RegressionOptions(data="ambiguous", methods="cnp", tasks=50, test_tasks=4)
    pool = next(next(of_regression(run, options, 50)).pools)
    assert (pool.support_y.shape, pool.query_y.shape) == ((50, 30), (50, 20))
