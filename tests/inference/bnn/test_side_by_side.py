"""Posteriors of many data sets, fitted side by side: each is the best diagonal Gaussian of its own."""

import pytest
import torch
from torch import nn

from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.fitting import Recipe
from inference.bnn.side_by_side import fit_side_by_side
from inference.diagnostics.networks import DRAWS, calibrate_networks, simulate
from inference.runs.training import Loop
from models.bayesian.weight_priors import GaussianWeightPrior
from tests.inference.diagnostics.test_networks import AT, NOISE, SCALE, X, exact_moments, linear_model

CENTRED = torch.linspace(-1.0, 1.0, 6)[:, None]  # slope and intercept are independent: a diagonal Gaussian is exact


def recipe(algorithm=Algorithm.VANILLA, **changes):
    settings = FitSettings(**{"epochs": 100, "batch": 6, "particles": 4, "learning_rate": 0.1, **changes})
    return Recipe(algorithm, 1.0, linear_model().likelihood, GaussianWeightPrior(SCALE), settings=settings)


def fit(x, y, **changes):
    return fit_side_by_side(nn.Linear(1, 1), x, y, recipe(**changes), loop=Loop("cpu"))


@pytest.fixture(scope="module")
def data_sets():
    """Of off-centre inputs."""
    return simulate(linear_model(), X, 40, seed=3)[1]


def test_each_posterior_has_the_mean_of_its_own_data_set_and_the_precision_s_diagonal(data_sets):
    posterior = fit(X, data_sets)
    mean, covariance = exact_moments(X, data_sets)
    scale = torch.linalg.inv(covariance).diagonal().rsqrt()
    assert posterior.loc.shape == (40, 2)
    assert float(((posterior.loc - mean) / scale).abs().mean()) < 0.2
    torch.testing.assert_close(posterior.log_scale.exp().mean(0), scale, atol=0, rtol=0.05)


def test_batches_are_of_the_posterior_s_own_items(data_sets):
    """With half of the items per step every data set is still told from the others."""
    mean, _ = exact_moments(X, data_sets)
    found = fit(X, data_sets, batch=3, epochs=40)
    other = mean.roll(1, 0)
    assert float((found.loc - mean).square().mean()) < 0.05 * float((found.loc - other).square().mean())


@pytest.mark.slow
def test_a_diagonal_gaussian_passes_where_it_is_exact_and_fails_where_weights_are_correlated():
    verdicts = {}
    for name, x in (("centred", CENTRED), ("off centre", X)):
        draws = lambda y, x=x: fit(x, y).sample(DRAWS * len(y)).unflatten(0, (DRAWS, len(y)))  # noqa: E731
        verdicts[name] = calibrate_networks(linear_model(), draws, x, AT, simulations=250, seed=1)
    assert verdicts["centred"].passed
    assert not verdicts["off centre"].passed
    assert NOISE < SCALE, "or the data would say nothing"
