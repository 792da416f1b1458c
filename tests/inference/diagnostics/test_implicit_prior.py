"""What prior a few steps of descent stand for: descent itself against the mode under it, and the spectrum of its steps."""

import pytest
import torch
from torch import nn

from inference.diagnostics.implicit_prior import descent_spectrum, implicit_prior, share_beyond
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.networks.functional import FunctionalNetwork
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import LinearPredictor


def descend(x, y, theta, step_size, steps):
    for _ in range(steps):
        theta = theta - step_size * (x.mT @ (x @ theta[..., None] - y[..., None]))[..., 0]
    return theta


def mode(x, y, theta, covariance):
    """Of ½ ‖y − x w‖² + ½ (w − θ)ᵀ Q⁻¹ (w − θ), without Q's inverse."""
    gain = covariance @ x.mT @ torch.linalg.inv(x @ covariance @ x.mT + torch.eye(x.shape[-2]))
    return theta + (gain @ (y[..., None] - x @ theta[..., None]))[..., 0]


@pytest.mark.parametrize("pace", [0.01, 0.7, 1.5, 2.3])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("items", [2, 6])  # fewer than weights: directions of which they say nothing
def test_descent_ends_at_the_mode_under_it(pace, steps, items, float64):
    x, y, theta = torch.randn(3, items, 4), torch.randn(3, items), torch.randn(3, 4)
    steepest = torch.linalg.eigvalsh(x.mT @ x).amax()
    step_size = float(pace / steepest)
    covariance = implicit_prior(x.mT @ x, step_size, steps)
    torch.testing.assert_close(mode(x, y, theta, covariance), descend(x, y, theta, step_size, steps))
    torch.testing.assert_close(covariance, covariance.mT)


def test_steps_too_long_stand_for_no_prior(float64):
    curvature = torch.diag(torch.tensor([1.0, 4.0]))
    variances = lambda pace, steps: torch.linalg.eigvalsh(implicit_prior(curvature, pace / 4, steps))  # noqa: E731
    assert variances(0.9, 3).min() > 0
    assert variances(1.5, 3).min() == pytest.approx(((-0.5) ** -3 - 1) / 4)
    assert variances(1.5, 3).min() < 0 < variances(1.5, 2).min()
    assert variances(2.5, 2).min() < 0 > variances(2.5, 3).min()


def test_a_direction_without_items_has_the_length_of_the_way(float64):
    """K α, near 0 too."""
    for small in (0.0, 1e-13, 1e-8):
        variance = implicit_prior(torch.tensor([[small]]), 0.3, 5)
        torch.testing.assert_close(variance, torch.tensor([[1.5]]), atol=1e-6, rtol=0)


def test_spectrum_of_linear_regression(float64):
    x = torch.randn(3, 6, 4)
    likelihood, predictor = GaussianLikelihood(0.5).double(), LinearPredictor(learned=False).double()
    found = descent_spectrum(predictor, likelihood, x, torch.zeros(3, 1, 4), 0.1)
    torch.testing.assert_close(found, 0.1 * torch.linalg.eigvalsh(x.mT @ x) / 0.25)


def test_spectrum_with_a_size_for_each_weight(float64):
    x, sizes = torch.randn(3, 6, 4), torch.rand(4)
    likelihood, predictor = GaussianLikelihood(0.5).double(), LinearPredictor(learned=False).double()
    found = descent_spectrum(predictor, likelihood, x, torch.zeros(3, 1, 4), sizes)
    expected = torch.linalg.eigvals(sizes[:, None] * (x.mT @ x) / 0.25).real.sort().values
    torch.testing.assert_close(found, expected)


def test_spectrum_of_a_network_has_as_many_directions_as_labels_tell_of(float64):
    """Outputs less one an item: softmax does not see what is added to all."""
    predictor = NetworkPredictor(FunctionalNetwork(nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3))), 3).double()
    weights = predictor.network.flat()[None].expand(2, 1, -1)
    spectrum = descent_spectrum(predictor, CategoricalLikelihood(), torch.randn(2, 5, 4), weights, 0.4)
    assert spectrum.shape == (2, 15)
    assert (spectrum > 1e-9 * spectrum.amax()).sum(-1).tolist() == [10, 10]
    torch.testing.assert_close(share_beyond(spectrum, 0.0), torch.ones(2))


def test_share_beyond_a_limit():
    spectrum = torch.tensor([[0.0, 1e-9, 0.5, 1.5, 2.5], [0.0, 0.0, 0.1, 0.2, 0.3], [0.0] * 5])
    torch.testing.assert_close(share_beyond(spectrum, 1.0), torch.tensor([2 / 3, 0, 0]))
    torch.testing.assert_close(share_beyond(spectrum, 2.0), torch.tensor([1 / 3, 0, 0]))
