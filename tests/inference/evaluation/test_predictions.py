"""Predictions from posterior draws against sums written out."""

import math

import pytest
import torch

from inference.evaluation.predictions import ClassPredictions

DRAWS = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]], [[0.8, 0.2], [0.5, 0.5]]])


def test_numbers_of_each_item():
    predicted = ClassPredictions.from_draws(DRAWS, ("cat", "dog"))
    torch.testing.assert_close(predicted.probabilities, torch.tensor([[0.6, 0.4], [0.5, 0.5]]))
    entropy = -0.6 * math.log(0.6) - 0.4 * math.log(0.4)
    inner = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.9, 0.1, 0.8)) / 3
    assert predicted.entropy.tolist() == pytest.approx([entropy, math.log(2)], rel=1e-5)
    assert predicted.mutual_information.tolist() == pytest.approx([entropy - inner, 0], abs=1e-6)
    assert predicted.names == ["cat", "cat"]


def test_intervals_hold_nine_in_ten_draws():
    draws = torch.rand(10_000, 1, 1, generator=torch.Generator().manual_seed(0))
    predicted = ClassPredictions.from_draws(draws)
    assert float(predicted.lower) == pytest.approx(0.05, abs=0.01)
    assert float(predicted.upper) == pytest.approx(0.95, abs=0.01)


def test_points_have_intervals_of_no_width():
    predicted = ClassPredictions.from_draws(DRAWS[:1])
    assert torch.equal(predicted.lower, predicted.upper)
    assert float(predicted.mutual_information.abs().max()) == 0


def test_batches_join():
    whole = ClassPredictions.from_draws(DRAWS, ("cat", "dog"))
    parts = [ClassPredictions.from_draws(DRAWS[:, i : i + 1], ("cat", "dog")) for i in range(2)]
    joined = ClassPredictions.concatenate(parts)
    assert joined.class_names == whole.class_names
    for name in ("probabilities", "lower", "upper", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
