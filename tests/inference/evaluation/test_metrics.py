"""Scores of predictions by hand: calibration error, confidence interval, Brier score."""

import pytest
import torch

from inference.evaluation.metrics import confidence_interval, predictive_scores, score


def binary(confidences):
    """Probabilities of two classes of which the first has these."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first, 1 - first], -1)


class TestCalibration:
    def test_ece_is_the_mean_absolute_gap_weighted_by_the_bins(self):
        """Six items of confidence 0.9, four right (gap 0.2333); four of 0.6, all right (gap 0.4): 0.6·0.2333 + 0.4·0.4 = 0.3.
        The root mean square would be 0.3109, the maximum 0.4."""
        probabilities = binary([0.9] * 6 + [0.6] * 4)
        labels = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
        assert predictive_scores(probabilities, labels)["ece"] == pytest.approx(0.3, abs=1e-6)

    def test_there_are_fifteen_bins(self):
        """10/15 divides 0.66, all wrong, from 0.68, all right; 5 or 10 bins would put them together."""
        probabilities, labels = binary([0.66] * 5 + [0.68] * 5), torch.tensor([1] * 5 + [0] * 5)
        assert predictive_scores(probabilities, labels)["ece"] == pytest.approx((0.66 + 0.32) / 2, abs=1e-6)

    def test_other_scores(self):
        """NLL in nats, and a Brier score from 0 to 2 that is summed over classes."""
        scores = predictive_scores(binary([0.8, 0.8]), torch.tensor([0, 1]))
        assert scores["accuracy"] == 0.5
        assert scores["nll"] == pytest.approx(-0.5 * (torch.tensor(0.8).log() + torch.tensor(0.2).log()).item(), abs=1e-6)
        assert scores["brier"] == pytest.approx((2 * 0.04 + 2 * 0.64) / 2)


class TestInterval:
    def test_half_width_is_1_96_standard_errors_of_the_mean(self):
        values = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
        assert confidence_interval(values) == pytest.approx(1.96 * (1 / 3) ** 0.5 / 4**0.5)
        assert confidence_interval(values.repeat(100)) == pytest.approx(1.96 * 0.5 / 20, rel=2e-3), "it shrinks with √tasks"

    def test_a_single_task_has_none(self):
        assert confidence_interval(torch.tensor([0.7])) == 0.0

    def test_scores_of_tasks_hold_it(self):
        """Two tasks, all right and all wrong: mean ½, standard deviation √½, interval 1.96 √½/√2."""
        probabilities = binary([0.9, 0.9, 0.9, 0.9]).reshape(2, 2, 2)
        scores = score(probabilities, torch.tensor([[0, 0], [1, 1]]), rate=torch.tensor([1.0, 3.0]), distortion=torch.zeros(2))
        assert (scores.episodes, scores.accuracy, scores.rate) == (2, 0.5, 2.0)
        assert scores.ci95 == pytest.approx(1.96 * 0.5)
