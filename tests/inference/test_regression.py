"""Few-shot regression by the command: it finds the noise and the prior, and its intervals cover."""

import json

import pytest

from inference.svi_sib import main


@pytest.mark.parametrize(("name", "noise", "rmse"), [("linear", 0.5, 0.62), ("sinusoids", 0.1, 1.6)])
def test_regression_run(name, noise, rmse, tmp_path, capsys):
    out = tmp_path / "run"
    run = main(["--data", name, "--beta", "1", "--tasks", "16000", "--test-tasks", "300", "--out", str(out)])
    record = json.loads(run.metrics.read_text())["results"][0]
    assert record["rmse"] < rmse
    assert 0.8 < record["coverage90"] < 0.97
    if name == "linear":
        assert record["noise"] == pytest.approx(noise, rel=0.1)
        assert "exact nll" in capsys.readouterr().out
