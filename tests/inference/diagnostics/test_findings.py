"""What is said of a posterior."""

import torch

from inference.diagnostics.findings import Finding, format_findings


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


def test_chance_is_larger_among_fewer_items():
    assert coin(0.7, 50).chance_ece > 2 * coin(0.7, 2000).chance_ece


def test_only_columns_that_are_shown_are_explained():
    printed = format_findings([Finding("a", nll=1.0)])
    assert "NLL: nats per held-out item" in printed
    assert "SBC" not in printed
    assert "PSIS" not in printed
