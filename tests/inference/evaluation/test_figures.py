"""Pictures that all systems share: nothing is moved, hidden or left out."""

import matplotlib.pyplot as plt
import pytest
import torch

from inference.evaluation.figures import Bins, RatePoint, logarithmic, rate_curves, reliability_diagram
from tests.pictures import assert_readable


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_a_rate_of_zero_stands_at_zero():
    points = [RatePoint(10.0, 0.0, (120.7, 20.0), (None, 0.0)), RatePoint(1.0, 7.8, (110.8, 50.1), (None, 0.7))]
    figure = rate_curves({"cosine": points}, labels=("distortion", "accuracy"), rate="rate", question="Why?")
    for axis, heights in zip(figure.axes, ([120.7, 110.8], [20.0, 50.1]), strict=True):
        assert sorted(axis.lines[0].get_xydata().tolist()) == [[0.0, heights[0]], [7.8, heights[1]]]
        assert axis.get_xscale() == "symlog"
        assert axis.xaxis.get_transform().linthresh == 1.0, "the power of ten below 7.8"


@pytest.mark.parametrize(("values", "scale"), [([0.2, 30.0], "log"), ([0.0, 30.0], "symlog"), ([-1.0, 30.0], "symlog")])
def test_an_axis_is_logarithmic_where_it_can_be(values, scale):
    figure, axis = plt.subplots()
    axis.plot(values, values)
    logarithmic(axis, "y", values)
    assert axis.get_yscale() == scale
    figure.canvas.draw()
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    assert "10" in labels, "plain numbers"


def test_every_posterior_has_a_look_of_its_own():
    probabilities = torch.tensor([[0.7, 0.3]]).expand(40, 2)
    figure = reliability_diagram({f"posterior {i}": (probabilities, torch.zeros(40).long()) for i in range(13)})
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("posterior")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 13


@pytest.mark.parametrize("many", [2, 13])
def test_reliability_has_errors_and_intervals_and_a_key_that_hides_nothing(many):
    """Of 40 items 30 are right at a confidence of 0.7: an error of 0.05, and Wilson's interval (scipy's binomtest)."""
    probabilities, labels = torch.tensor([[0.7, 0.3]]).expand(40, 2), (torch.arange(40) >= 30).long()
    names = [f"posterior {i}" for i in range(many)]
    figure = reliability_diagram(
        dict.fromkeys(names, (probabilities, labels)), ece={"posterior 1": 0.123}, about="glyphs, 5-way 1-shot"
    )
    assert_readable(figure, "glyphs, 5-way 1-shot")
    shown = figure.axes[0].get_legend_handles_labels()[1]
    assert shown[1:3] == ["posterior 0: ECE 5.0 %", "posterior 1: ECE 12.3 %"], "a table's number where there is one"
    assert figure.axes[0].lines[1].get_xydata().ravel().tolist() == pytest.approx([0.7, 0.75])
    ends = figure.axes[0].collections[0].get_segments()[0][:, 1]
    assert ends.tolist() == pytest.approx([0.5981, 0.8581], abs=1e-4)


def test_bins_without_items_have_no_number():
    found = Bins.of(torch.tensor([[0.9, 0.1]]), torch.zeros(1).long(), bins=2)
    assert found.counts.tolist() == [0, 1]
    assert found.accuracy[0] != found.accuracy[0]
