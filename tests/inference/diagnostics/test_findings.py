"""What is said of a posterior."""

import json

import pytest
import torch

from inference.diagnostics.calibration import LOG_LIKELIHOOD, Calibration
from inference.diagnostics.findings import Finding, format_findings, gap_words
from inference.diagnostics.regret import Regret


def coin(confidence: float, items: int = 2000) -> Finding:
    """Probabilities that are right at 0.7, of items of which 70 % are of class 1."""
    labels = (torch.arange(items) % 10 < 7).long()
    return Finding("coin", probabilities=torch.tensor([1 - confidence, confidence]).repeat(items, 1), labels=labels)


def test_right_probabilities_are_off_by_no_more_than_chance():
    right, sure = coin(0.7), coin(0.8)
    assert right.ece < right.chance_ece
    assert 0.01 < right.chance_ece < 0.03, "1.96 sqrt(0.7 · 0.3 / 2000) = 0.020"
    assert "which right ones may be too" in right.verdict
    assert sure.ece > sure.chance_ece
    assert "10.0 % on average over 2000 items, where right ones are by" in sure.verdict
    assert right.row()["items"] == 2000


def test_chance_takes_all_items_of_one_draw_together():
    """Two draws that say 0.9 and 0.5 of every item: right ones are off by 20 % one way or the other, their mean saying 0.7."""
    labels, sure = coin(0.7).labels, torch.tensor([0.9, 0.5])[:, None]
    drawn = torch.stack([1 - sure, sure], -1).expand(2, len(labels), 2)
    together = Finding("coin", probabilities=drawn.mean(0), labels=labels, drawn=drawn)
    assert together.ece == coin(0.7).ece
    assert abs(together.chance_ece - 0.2) < 0.03


def test_a_gap_is_negative_beyond_its_interval_alone():
    assert "better than the best diagonal" in gap_words(-0.2, 0.1)
    assert "above a diagonal" in gap_words(-0.05, 0.1)


def test_what_is_counted_over_tasks():
    found = Finding("q", psis_k=torch.tensor([0.1, 0.2, 0.9, 0.3]), levels=torch.linspace(0.0005, 0.9995, 1000))
    assert found.bad_k == 0.25
    assert abs(found.coverage90 - 0.9) < 0.002


def test_what_is_not_finite_can_be_written():
    """Weights that overflow have no Pareto k, a predictive that misses a target an infinite regret."""
    found = Finding("q", psis_k=torch.tensor([torch.nan]), regret=Regret(torch.inf, torch.nan, 0.0, 1), nll=torch.inf)
    row = json.loads(json.dumps(found.row(), allow_nan=False))
    assert row["psis_k_median"] is row["nll"] is row["regret"]["mean"] is None
    assert row["regret"]["tasks"] == 1


def test_chance_is_larger_among_fewer_items():
    assert coin(0.7, 50).chance_ece > 2 * coin(0.7, 2000).chance_ece


def test_only_columns_that_are_shown_are_explained():
    printed = format_findings([Finding("a", nll=1.0)])
    assert "NLL: nats per held-out item" in printed
    assert "SBC" not in printed
    assert "PSIS" not in printed


def test_spread_is_of_weights_and_outputs_alone():
    """Ranks at both ends are three times as spread as uniform ones; those of the log likelihood say nothing of width."""
    ranks = torch.tensor([[0, 50], [100, 50]]).repeat(20, 1)
    row = Finding("ends", calibration=Calibration(("w", LOG_LIKELIHOOD), ranks, 100, 0.95)).row()
    assert row["sbc_spread"] == pytest.approx(3, rel=0.03)
