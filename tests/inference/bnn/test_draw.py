"""Pictures: by name, drawn only when called, with each posterior's own noise."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from data.regression import load_curve
from inference.bnn.algorithms import Algorithm
from inference.bnn.bands import regression_bands
from inference.bnn.bnn import BNN
from inference.bnn.draw import figures
from inference.bnn.plots import learning_curves, predictive_entropy, rate_distortion_curve
from inference.bnn.posterior import WeightPosterior
from inference.runs.folder import RunFolder
from models.bayesian.network import BayesianNetwork
from models.likelihoods import GaussianLikelihood
from tests.pictures import assert_readable

RECORD = {"split": "val", "algorithm": "online", "beta": 0.1, "items": 120, "rate": 3.0, "distortion": 50.0, "nll": 0.4}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def zeros(noises) -> WeightPosterior:
    """Networks that are zero everywhere, with these noises."""
    model = BayesianNetwork(nn.Linear(1, 1), None, GaussianLikelihood())
    return WeightPosterior(model, torch.zeros(len(noises), 2), None, own_likelihood=GaussianLikelihood(torch.tensor(noises)))


def test_bands_have_the_variance_of_all_posteriors_noises():
    """Two posteriors on one function with noises 1 and 3: the predictive variance is (1 + 9)/2."""
    figure = regression_bands({"online": zeros([1.0, 3.0])}, torch.linspace(-1, 1, 4)[:, None], torch.zeros(4))
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert float(band.max()) == pytest.approx(2 * math.sqrt(5), rel=1e-5)


def test_pictures_are_drawn_when_called(tmp_path, monkeypatch):
    posterior = zeros([1.0])
    fitted = {Algorithm.ONLINE: BNN(Algorithm.ONLINE, 0.1, posterior, posterior.rate())}
    data = load_curve()
    run = RunFolder(tmp_path)
    drawn = figures(fitted, data, None, [RECORD], run, train=data.train, samples=4, seed=0)
    assert not plt.get_fignums()
    assert drawn.keys() == {"learning_curves", "rate_distortion", "regression"}
    assert isinstance(drawn["regression"](), Figure)


def test_curve_of_rate_and_distortion_is_per_item():
    axes = rate_distortion_curve([RECORD]).axes
    assert axes[0].lines[0].get_xydata().tolist() == [[3.0, pytest.approx(50 / 120)]]


def test_every_beta_has_a_marker_of_its_own():
    betas = (0.01, 0.1, 1.0)
    figure = rate_distortion_curve([{**RECORD, "beta": beta, "rate": 3 / beta} for beta in betas])
    named = dict(zip(*reversed(figure.axes[1].get_legend_handles_labels()), strict=True))
    for beta in betas:
        marker = named[f"β = {beta:g}"].get_marker()
        drawn = [line for line in figure.axes[0].lines if line.get_marker() == marker]
        assert [line.get_xdata()[0] for line in drawn] == [pytest.approx(3 / beta)]


@pytest.mark.parametrize("names", [["test/nll"], ["test/accuracy", "test/nll"]])
def test_learning_curves_have_a_panel_for_each_scalar_there_is(names):
    figure = learning_curves({"vanilla": {name: ([1, 2], [0.5, 0.4]) for name in names}})
    assert [len(axis.lines) for axis in figure.axes] == [1] * len(names)


def test_learning_curves_end_at_what_the_table_says():
    history = {"vanilla": {"test/nll": ([1, 2], [0.5, 0.4]), "test/accuracy": ([1, 2], [0.8, 0.9])}}
    figure = learning_curves(history, [{"algorithm": "vanilla", "accuracy": 0.91, "nll": 0.39}], about="glyphs, 4000 items")
    assert_readable(figure, "glyphs, 4000 items")
    for axis, value in zip(figure.axes, (91.0, 0.39), strict=True):
        assert axis.lines[1].get_xydata().tolist() == [[2, pytest.approx(value)]]
    assert "the table: all items and draws" in figure.axes[1].get_legend_handles_labels()[1]


@pytest.mark.parametrize("many", [1, 5, 9])
def test_entropy_says_how_well_it_tells_the_unknown(many):
    names = [algorithm.value for algorithm in list(Algorithm)[:many]]
    values = dict.fromkeys(names, (torch.rand(50), torch.rand(50)))
    figure = predictive_entropy(values, 10, {"vanilla": 0.8765}, about="glyphs, β: vanilla 1")
    assert_readable(figure, "glyphs, β: vanilla 1")
    shown = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert shown == ["vanilla\nAUROC 0.876" if name == "vanilla" else name for name in names]
