"""Pictures of meta-learners on regression show what they say."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from data.regression import network_outputs, network_prior
from data.seeding import mix_seed
from inference.meta import regression_pictures
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_tasks import Problem
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def record(**beside):
    usual = {"method": "maml", "given": "", "beta": None, "adapt_ms": 2.0, "regret": 0.5, "regret_ci95": 0.1, "nll": 3.0}
    return SimpleNamespace(**{**usual, "reference": "NUTS", **beside})


def test_regret_stands_over_time():
    records = [record(), record(method="sib", beta=1.0, adapt_ms=0.5, regret=0.25)]
    figure = regression_pictures.regret_against_time(records)
    (axis,) = figure.axes
    points = [container.lines[0].get_xydata().tolist()[0] for container in axis.containers]
    assert points == [[2.0, 0.5], [0.5, 0.25]]
    assert "NUTS" in axis.get_ylabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["maml", "sib, β = 1"]


def test_long_names_stand_inside_the_picture_and_what_is_below_zero_has_no_more_room_than_it_needs():
    long = "width=100:code=5:penalty=weights:weight=0.0001"
    for low in (0.5, -0.2):
        figure = regression_pictures.regret_against_time([record(given=f"{long}{i}", regret=low) for i in range(6)])
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        bottom = figure.axes[0].get_ylim()[0]
        assert bottom == pytest.approx(-0.005 if low > 0 else -0.39)


def test_without_a_reference_it_is_the_nll():
    (axis,) = regression_pictures.regret_against_time([record(regret=None, regret_ci95=None)]).axes
    assert axis.containers[0].lines[0].get_xydata().tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("name", ["network", "sinusoids", "ambiguous"])
def test_what_is_true_goes_through_the_task_without_noise(name):
    tasks, truth = regression_pictures.pictured(Problem(name), seed=2)
    x = tasks.query_x[0, :, 0]
    if name == "network":
        loc, scale = network_prior(20)
        generator = torch.Generator().manual_seed(mix_seed(2, regression_pictures.PICTURE))
        weights = loc + scale * torch.randn(3, len(loc), generator=generator)
        expected = network_outputs(x.expand(3, -1), weights)
        inside = (x.abs() < 2.8).expand(3, -1)
        torch.testing.assert_close(truth[inside], expected[inside], atol=0.03, rtol=0)
    near = regression_pictures.interpolate(tasks.support_x[0, :, 0].sort().values, x.expand(3, -1), truth)[0]
    left = near - tasks.support_y[0, tasks.support_x[0, :, 0].argsort()]
    assert float(left.abs().max()) < 5 * Problem(name).noise
    assert float(left.abs().max()) > 0.1 * Problem(name).noise, "the support has noise"


def test_straight_lines_between_points():
    x, y = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 2.0, 6.0]])
    found = regression_pictures.interpolate(torch.tensor([-1.0, 0.5, 2.0, 9.0]), x, y)
    assert found.tolist() == [[0.0, 1.0, 4.0, 6.0]]


def test_bands_are_those_of_the_predictive():
    method, setup = REGRESSION_METHODS["prior"], Setup(Problem("network"), GuideSettings(), MetaSchedule(10), 5)
    fit = method.build(setup, method.variants(VariantSettings(), setup.problem)[0])
    tasks, _ = regression_pictures.pictured(setup.problem, seed=0)
    mean, spread = regression_pictures.band(fit, tasks)
    loc, scale = network_prior(20)
    drawn = network_outputs(tasks.query_x[0, :, 0].expand(4000, -1), loc + scale * torch.randn(4000, len(loc)))
    torch.testing.assert_close(spread[0].float(), (drawn.var(0) + 0.04).sqrt(), rtol=0.2, atol=0)
    torch.testing.assert_close(mean[0].float(), drawn.mean(0), rtol=0, atol=0.3)
    figure = regression_pictures.curves({"one": fit, "two": fit}, setup.problem)
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    assert len(figure.axes[0].lines) == 9
