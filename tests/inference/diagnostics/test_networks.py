"""Calibration of algorithms for networks: the exact posterior of a linear network passes, a narrow one and the prior fail."""

import math

import pytest
import torch
from torch import nn

from inference.diagnostics.networks import DRAWS, calibrate_networks, coordinates, simulate
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood

NOISE, SCALE, SIMULATIONS = 0.5, 0.8, 400
X = torch.linspace(0.0, 2.0, 6)[:, None]  # off centre: slope and intercept are correlated
AT = torch.tensor([[-1.0], [1.5], [5.0]])


def linear_model(network=None, likelihood=None):
    network = network or nn.Linear(1, 1)
    return BayesianNetwork(network, GaussianWeightPrior(SCALE), likelihood or GaussianLikelihood(NOISE, learned=False))


def exact_moments(x, y):
    """Of slope and intercept given data sets ``[S, n]``: means ``[S, 2]`` and the covariance they share."""
    design = torch.cat([x, torch.ones_like(x)], dim=-1)
    covariance = torch.linalg.inv(design.T @ design / NOISE**2 + torch.eye(2) / SCALE**2)
    return y @ design @ covariance / NOISE**2, covariance


def exact_draws(y, factor=1.0):
    mean, covariance = exact_moments(X, y)
    noise = torch.randn(DRAWS, *mean.shape, generator=torch.Generator().manual_seed(5))
    return mean + factor * noise @ torch.linalg.cholesky(covariance).T


def test_the_exact_posterior_of_a_linear_network_passes_and_a_narrow_one_fails():
    found = calibrate_networks(linear_model(), exact_draws, X, AT, simulations=SIMULATIONS)
    assert found.names == ("output 1", "output 2", "output 3", "log likelihood")
    assert found.ranks.shape == (SIMULATIONS, 4)
    assert found.passed
    narrow = calibrate_networks(linear_model(), lambda y: exact_draws(y, 0.5), X, AT, simulations=SIMULATIONS)
    assert not narrow.inside.any()
    assert "too narrow" in narrow.verdict


def test_the_prior_passes_everywhere_but_on_the_log_likelihood():
    model = linear_model()
    found = calibrate_networks(
        model, lambda y: model.prior(2).sample((DRAWS, len(y))), X, AT, simulations=SIMULATIONS, names=["a", "b", "c"]
    )
    assert found.names[:3] == ("a", "b", "c")
    assert found.inside.tolist() == [True, True, True, False]


def test_data_sets_are_of_the_model():
    weights, y = simulate(linear_model(), X, 4000, seed=1)
    assert float(weights.std()) == pytest.approx(SCALE, rel=0.03)
    residual = y - (weights[:, :1] * X[:, 0] + weights[:, 1:])
    assert float(residual.std()) == pytest.approx(NOISE, rel=0.03)
    assert torch.equal(simulate(linear_model(), X, 4000, seed=1)[1], y)


def test_functions_are_ranked_and_not_what_leaves_them_alone(monkeypatch):
    """Outputs of classes may all be shifted alike; draws are looked at in parts."""
    model = linear_model(nn.Linear(1, 3), CategoricalLikelihood())
    weights, y = torch.randn(7, 4, 6), torch.randint(3, (4, len(X)))
    found = coordinates(model, weights, X, y, AT)
    assert found.shape == (7, 4, 4)
    shifted = weights.clone()
    shifted[..., 3:] += 2.0  # the biases
    torch.testing.assert_close(coordinates(model, shifted, X, y, AT), found)
    logits = (weights[..., None, :3] * AT + weights[..., None, 3:]).log_softmax(-1)
    torch.testing.assert_close(found[..., :3], logits[..., 0])
    at_data = (weights[..., None, :3] * X + weights[..., None, 3:]).log_softmax(-1)
    by_hand = at_data.gather(-1, y.expand(7, -1, -1)[..., None]).sum((-1, -2))
    torch.testing.assert_close(found[..., 3], by_hand)
    monkeypatch.setattr("inference.diagnostics.networks.AT_ONCE", 1)
    torch.testing.assert_close(coordinates(model, weights, X, y, AT), found)
    assert math.isfinite(float(found.sum()))
