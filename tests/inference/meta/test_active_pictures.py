"""Pictures of active learning show means over tasks, with their intervals, after each label."""

import matplotlib.pyplot as plt
import pytest
import torch

from inference.active import Acquisition
from inference.evaluation.metrics import confidence_interval
from inference.meta.active_pictures import Curve, worth_of_labels
from tests.pictures import assert_readable


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_each_method_has_a_panel_with_means_and_intervals_after_each_label():
    generator = torch.Generator().manual_seed(0)
    values = {a: torch.rand(4, 30, generator=generator) for a in (Acquisition.RANDOM, Acquisition.BALD)}
    curves = {a: Curve(v.mean(-1).tolist(), [confidence_interval(turn) for turn in v]) for a, v in values.items()}
    figure = worth_of_labels(
        {"sib": curves, "tpn": {Acquisition.RANDOM: curves["random"]}}, "accuracy (%)", factor=100, about="x"
    )
    assert_readable(figure, "x")
    one, two = figure.axes
    assert (one.get_title(), two.get_title()) == ("sib", "tpn")
    assert one.get_ylabel() == "accuracy (%)"
    assert one.get_xlabel() == two.get_xlabel() == "labels asked for"
    assert {line.get_label() for line in one.lines} == {"random", "bald"}
    line, band = one.lines[1], one.collections[1]
    assert line.get_xdata().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(torch.tensor(line.get_ydata()), 100 * values["bald"].mean(-1))
    half = 100 * 1.96 * values["bald"][0].std() / 30**0.5
    edges = [y for x, y in band.get_paths()[0].vertices if x == 0]
    assert max(edges) - min(edges) == pytest.approx(2 * float(half), rel=1e-5)
    assert one.get_yscale() == "linear"
    assert one.lines[0].get_color() == two.lines[0].get_color(), "what is asked for has one colour everywhere"


def test_errors_may_be_on_a_logarithmic_axis():
    curve = Curve([3.0, 2.0, 1.0], [0.1, 0.1, 0.1])
    assert worth_of_labels({"sib": {Acquisition.RANDOM: curve}}, "MSE", log=True).axes[0].get_yscale() == "log"
