"""Pictures of the checks: they show what the verdict says, by its own band."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from inference.diagnostics.calibration import calibrate
from inference.diagnostics.findings import Finding
from inference.diagnostics.plots import rank_panels, regret_dots
from inference.diagnostics.regret import Regret


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_a_curve_is_marked_where_it_leaves_the_verdicts_band():
    """One coordinate of three is far too narrow; the shaded area is the band, and the panel's scale its own."""
    torch.manual_seed(0)
    found = calibrate(torch.randn(300, 3), torch.randn(19, 300, 3) * torch.tensor([1.0, 0.3, 1.0]), ["a", "b", "c"])
    right = calibrate(torch.randn(300, 3), torch.randn(19, 300, 3), ["a", "b", "c"])
    figure = rank_panels({"narrow": found, "right": right})
    axis = figure.axes[2]
    lower, upper = found.band()
    edges = axis.collections[0].get_paths()[0].vertices
    for edge in (lower, upper):
        assert {round(float(v), 6) for v in edge - found.points} <= {round(float(v), 6) for v in edges[:, 1]}
    curves = [line for line in axis.lines if line.get_linestyle() == "-"]
    marked = [line.get_markevery() for line in curves if line.get_marker() == "o"]
    assert found.inside.tolist() == [True, False, True]
    assert len(marked) == 1
    outside = (found.distribution()[1] < lower) | (found.distribution()[1] > upper)
    assert np.array_equal(marked[0], outside)
    assert outside.any()
    assert "fails: 1 of 3 leave" in figure.axes[0].get_title()
    assert "passes" in figure.axes[1].get_title()
    assert figure.axes[2].get_ylim() != figure.axes[3].get_ylim()


def test_small_and_large_regrets_are_told_apart():
    """On a linear axis 0.002 and 0.02 are one point beside 3."""
    means = (-0.001, 0.002, 0.02, 3.0)
    figure = regret_dots([Finding(str(m), regret=Regret(m, 0.001, 0.0, 9), reference="exact Bayes") for m in means])
    (axis,) = figure.axes
    figure.canvas.draw()
    places = [axis.transData.transform((m, 0))[0] / figure.bbox.width for m in means]
    assert min(np.diff(places)) > 0.01
    assert axis.get_xscale() == "symlog"


def test_regrets_that_are_all_small_have_a_plain_axis():
    """Its ticks were once nothing but the axis' two ends, to six digits."""
    findings = [Finding(str(m), regret=Regret(m, 0.002, 0.0, 9), reference="exact Bayes") for m in (-0.001, 0.0005)]
    (axis,) = regret_dots(findings).axes
    assert axis.get_xscale() == "linear"
