"""Few-shot regression by the command, beside the exact predictive density and the task itself."""

import json

import pytest

from inference.meta.options import SibOptions
from inference.meta.regression import exact_nll
from inference.svi_sib import main


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rmse"), [("linear", 0.62), ("sinusoids", 0.8)])
def test_regression_run(name, rmse, tmp_path):
    arguments = ["--data", name, "--beta", "1", "--test-tasks", "300", "--out", str(tmp_path / "run")]
    record = json.loads(main(arguments).metrics.read_text())["results"][0]
    assert record["rmse"] < rmse  # exact posterior: 0.60; the sinusoids' own standard deviation: 2.1
    assert 0.88 < record["coverage90"] < 0.99
    if name == "linear":
        exact = exact_nll(SibOptions(data="linear", test_tasks=300))
        assert exact < record["nll"] < exact + 0.15
