"""Scores of predictions by hand: calibration error, confidence interval, Brier score."""

import math
from dataclasses import asdict

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from inference.evaluation.metrics import ItemSums, TaskSums, confidence_interval, predictive_scores, score


def binary(confidences):
    """Probabilities of two classes of which the first has these."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first, 1 - first], -1)


def drawn(*shape):
    """Class probabilities."""
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64).mul(2).softmax(-1)


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

    @pytest.mark.parametrize("classes", [2, 5])
    def test_ece_is_torchmetrics(self, classes):
        probabilities = drawn(1000, classes).float()
        probabilities[:3] = torch.eye(classes)[0]  # certain
        labels = torch.randint(classes, (1000,))
        theirs = multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=15, norm="l1")
        assert predictive_scores(probabilities, labels)["ece"] == pytest.approx(float(theirs), abs=1e-6)

    @pytest.mark.parametrize("edge", [8, 10, 14])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_confidence_on_the_edge_of_two_bins_is_in_the_upper_one(self, edge, dtype):
        """As in torchmetrics: a right item on the edge and a wrong one a little below, whose gaps would cancel in one bin."""
        on = torch.linspace(0, 1, 16, dtype=dtype)[edge]
        first = torch.stack([on, on - 0.02])
        probabilities, labels = torch.stack([first, 1 - first], -1), torch.tensor([0, 1])
        found = predictive_scores(probabilities, labels)["ece"]
        assert found == pytest.approx(((1 - float(on)) + (float(on) - 0.02)) / 2, abs=1e-6)
        theirs = multiclass_calibration_error(probabilities, labels, num_classes=2, n_bins=15, norm="l1")
        assert found == pytest.approx(float(theirs), abs=1e-6)

    def test_ece_of_millions_of_items_is_that_of_a_few(self):
        """In single precision a bin with 2²⁴ items would take no more of them."""
        sums, (probabilities, labels) = ItemSums(), (binary([0.9] * 4 + [0.6] * 4), torch.tensor([0, 0, 0, 1, 0, 0, 1, 1]))
        sums.add(probabilities, labels)
        one = sums.means()["ece"]
        for _ in range(24):
            sums.items, sums.gaps = 2 * sums.items, 2 * sums.gaps
        sums.add(probabilities, labels)
        assert float(sums.gaps.abs().sum()) == pytest.approx(one * sums.items, rel=1e-12)

    def test_nothing_has_no_scores(self):
        assert all(value != value for value in predictive_scores(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).values())

    def test_other_scores(self):
        """NLL in nats, and a Brier score from 0 to 2 that is summed over classes."""
        scores = predictive_scores(binary([0.8, 0.8]), torch.tensor([0, 1]))
        assert scores["accuracy"] == 0.5
        assert scores["nll"] == pytest.approx(-0.5 * (torch.tensor(0.8).log() + torch.tensor(0.2).log()).item(), abs=1e-6)
        assert scores["brier"] == pytest.approx((2 * 0.04 + 2 * 0.64) / 2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_nll_of_a_sure_mistake_is_not_cut_off(self, dtype):
        """But where the true class has no probability at all: then it is that of the smallest normal number, and finite."""
        probabilities = torch.tensor([[1e-30, 1.0]], dtype=dtype)
        assert predictive_scores(probabilities, torch.tensor([0]))["nll"] == pytest.approx(30 * math.log(10), rel=1e-6)
        impossible = predictive_scores(torch.tensor([[0.0, 1.0]], dtype=dtype), torch.tensor([0]))["nll"]
        assert impossible == pytest.approx(-math.log(torch.finfo(dtype).tiny), rel=1e-6)


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

    def test_of_whole_numbers_it_is_exact(self):
        """Though its square is a difference of large numbers."""
        probabilities, labels = drawn(50, 12, 3), torch.randint(3, (50, 12))
        accuracy = (probabilities.argmax(-1) == labels).double().mean(-1)
        found = score(probabilities, labels, rate=None, distortion=torch.zeros(50)).ci95
        assert found == pytest.approx(confidence_interval(accuracy), rel=1e-14)
        alike = score(probabilities[:1].expand(50, -1, -1), labels[:1].expand(50, -1), rate=None, distortion=torch.zeros(50))
        assert alike.ci95 == 0.0
        assert alike.accuracy == float(accuracy[0])


class TestSums:
    def test_tasks_added_by_parts_have_the_scores_of_the_whole(self):
        """In single precision too, but for rounding in double."""
        probabilities, labels = drawn(90, 6, 4).float(), torch.randint(4, (90, 6))
        rate, distortion = torch.rand(90), torch.rand(90)
        whole = score(probabilities, labels, rate=rate, distortion=distortion)
        sums = TaskSums()
        for part in torch.arange(90).split(20):
            sums.add(probabilities[part], labels[part], rate=rate[part], distortion=distortion[part])
        assert asdict(sums.scores()) == pytest.approx(asdict(whole), rel=1e-12)
        assert whole.nll == pytest.approx(float(-probabilities.gather(-1, labels[..., None]).log().mean()), rel=1e-6)
        assert (whole.rate, whole.distortion) == pytest.approx((float(rate.mean()), float(distortion.mean())), rel=1e-6)
        assert score(probabilities, labels, rate=None, distortion=distortion).rate is None

    def test_no_tasks_have_no_scores(self):
        """As no items have none."""
        scores = TaskSums().scores()
        assert (scores.episodes, scores.rate) == (0, None)
        numbers = (scores.accuracy, scores.ci95, scores.nll, scores.ece, scores.brier, scores.distortion)
        assert all(math.isnan(number) for number in numbers)

    @pytest.mark.parametrize("order", [(True, False, True), (False, True, True)])
    def test_tasks_of_which_some_have_no_rate_have_no_mean_rate(self, order):
        """Their sum over the number of all tasks is no mean of any."""
        sums, (probabilities, labels) = TaskSums(), (drawn(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
        for has_rate in order:
            sums.add(probabilities, labels, rate=torch.ones(2) if has_rate else None, distortion=torch.ones(2))
        assert (sums.scores().rate, sums.scores().distortion) == (None, 1.0)
