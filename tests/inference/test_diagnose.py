"""``diagnose``: a finished run in, a table, verdicts, pictures and JSON out; errors in one line."""

import json

import pytest
import torch

from data.errors import UserError
from inference import diagnose, svi_sib
from inference.diagnostics.calibration import calibrate
from inference.diagnostics.findings import Finding, format_findings
from inference.diagnostics.regret import Regret


def finding(**changes):
    torch.manual_seed(0)
    parts = {
        "calibration": calibrate(torch.rand(300, 2), torch.rand(19, 300, 2)),
        "regret": Regret(0.2, 0.05, 0.01, 30),
        "reference": "NUTS",
        "losses": torch.tensor([3.0, 5.0, 4.0]),
        "best_losses": torch.tensor([2.0, 4.0, 3.5]),
        "psis_k": torch.tensor([0.2, 0.9, 1.1, 0.5]),
        "levels": torch.linspace(0, 1, 101),
    }
    return Finding("K = 3", **{**parts, **changes})


def test_a_verdict_says_every_check_with_its_unit():
    words = finding().verdict
    assert words.startswith("K = 3: SBC passes (300 simulations, 2 coordinates, level 95%); ")
    assert "costs 0.200 ± 0.050 (reference ± 0.010) nats per query against NUTS" in words
    assert "0.83 ± 0.33 nats per task above a diagonal Gaussian optimised on each task" in words
    assert words.endswith("PSIS k above 0.7 in 50% of the tasks; 90 % intervals hold 90.1% of the targets")


def test_a_regret_within_its_error_is_no_difference():
    assert "predicts as well as NUTS" in finding(regret=Regret(0.03, 0.02, 0.04, 30)).verdict
    assert "gains -0.100" in finding(regret=Regret(-0.1, 0.02, 0.0, 30)).verdict


def test_the_table_leaves_out_what_was_not_checked():
    bare = Finding("point", levels=torch.rand(10))
    header = format_findings([bare]).splitlines()[0].split()
    assert header == ["posterior", "in", "90", "%"]
    full = format_findings([finding(), bare]).splitlines()
    assert "0.833 ± 0.327" in full[1]
    assert full[2].split()[1] == "-"


def test_every_picture_has_labels_and_survives_what_is_missing():
    drawn = diagnose.figures([finding(), Finding("bare", levels=torch.rand(10))])
    assert set(drawn) == {"calibration", "regret", "coverage", "psis_k"}
    for draw in drawn.values():
        figure = draw()
        assert all(axis.get_xlabel() for axis in figure.axes[-1:])
    assert diagnose.figures([]) == {}


def test_errors_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        diagnose.main(["--run", str(tmp_path)])
    (tmp_path / "config.yaml").write_text("data: glyphs\n")
    with pytest.raises(UserError, match=r"is not finished: it has no metrics\.json"):
        diagnose.main(["--run", str(tmp_path)])
    (tmp_path / "metrics.json").write_text('{"command": "svi_bnn", "dataset": "glyphs"}')
    with pytest.raises(UserError, match=r"no posteriors/\*\.nc"):
        diagnose.main(["--run", str(tmp_path)])
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(UserError, match=r"metrics\.json is of no run"):
        diagnose.main(["--run", str(tmp_path)])
    (tmp_path / "metrics.json").write_text('{"command": "svi_sib", "dataset": "linear"}')
    with pytest.raises(UserError, match=r"two runs: config\.yaml is of glyphs"):
        diagnose.main(["--run", str(tmp_path)])
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        diagnose.main(["--run", str(tmp_path)])
    with pytest.raises(UserError, match="--run"):
        diagnose.main([])


@pytest.mark.slow
def test_a_run_on_linear_tasks_is_diagnosed(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.meta.regression_diagnosis.STEPS", 300)
    words = "--data linear --beta 1 --steps 1 --tasks 1600 --test-tasks 60 --seed 1 --out"
    svi_sib.main([*words.split(), str(tmp_path / "run")])
    (folder := tmp_path / "run" / "diagnostics").mkdir()
    (folder / ".regret.0.12.png").touch()  # by a process that was killed
    findings = {f.name: f for f in diagnose.main(["--run", str(tmp_path / "run"), "--tasks", "40", "--simulations", "300"])}
    assert list(findings) == [
        "exact posterior", "exact posterior, scales halved", "K = 1", "K = 0", "per task, diagonal", "per task, full covariance"
    ]  # fmt: skip
    assert findings["exact posterior"].calibration.passed
    assert not findings["exact posterior, scales halved"].calibration.passed
    assert findings["exact posterior"].regret.mean == pytest.approx(0, abs=0.02)
    assert findings["K = 0"].gap[0] == pytest.approx(0, abs=0.1), "the ridge start is the optimum"
    assert {p.name for p in folder.iterdir()} == {
        "diagnostics.json", "calibration.png", "regret.png", "coverage.png", "psis_k.png"
    }  # fmt: skip
    rows = json.loads((folder / "diagnostics.json").read_text())["results"]
    assert [row["sbc_passed"] for row in rows][:2] == [True, False]
