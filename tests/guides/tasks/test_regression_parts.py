"""The parts of the unrolled guide that regression needs: starts, the network of residuals, a step size for each weight."""

import pytest
import torch

from data.regression import linear_posterior, network_outputs, network_prior, network_tasks
from guides.tasks.families import PosteriorParameters
from guides.tasks.gradient_networks import ResidualGradient
from guides.tasks.rules import GradientStep, Pull
from guides.tasks.starts import LinearisedStart, RidgeStart
from models.tasks.predictors import LinearPredictor, PerceptronPredictor


def test_a_linearised_start_of_a_linear_predictor_is_ridge_regression(float64):
    loc, scale = torch.randn(3), torch.rand(3) + 0.5
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6)
    linearised = LinearisedStart(LinearPredictor(1.0, learned=False).double(), loc, scale, 0.4)
    for found, expected in zip(linearised(x, y, x, 1), RidgeStart(loc, scale, 0.4)(x, y, x, 1), strict=True):
        torch.testing.assert_close(found, expected)


def test_ridge_regression_has_the_exact_mean_and_the_best_diagonal_s_variances(float64):
    loc, scale = torch.randn(3), torch.rand(3) + 0.5
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6)
    mean, covariance = linear_posterior(x, y, loc, scale, 0.4)
    found, log_scale = RidgeStart(loc, scale, 0.4)(x, y, x, 1)
    torch.testing.assert_close(found[:, 0], mean)
    torch.testing.assert_close((-2 * log_scale[:, 0]).exp(), torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1))


def test_a_linearised_network_has_the_slopes_of_the_network_at_the_prior_s_mean(float64):
    loc, scale = (part.double() for part in network_prior(5))
    episode = network_tasks(2, 3, loc, scale, noise=0.1, seed=0, support=4)
    design, outputs = LinearisedStart(PerceptronPredictor((1, 5, 1)), loc, scale, 0.1).design(episode.support_x)
    torch.testing.assert_close(outputs, network_outputs(episode.support_x[..., 0], loc))
    expected = torch.func.jacrev(lambda w: network_outputs(episode.support_x[..., 0], w))(loc)
    torch.testing.assert_close(design, expected)


def test_the_network_of_residuals_is_odd_and_vanishes_with_the_residual():
    network = ResidualGradient()
    outputs, labels = torch.randn(3, 2, 6, 1), torch.randn(2, 6)
    gradient = network(outputs, labels)
    assert gradient.shape == outputs.shape
    torch.testing.assert_close(network(-outputs, -labels), -gradient)
    assert (gradient.sign() == (outputs - labels[..., None]).sign()).all()
    assert not network(labels[..., None], labels).any()
    with pytest.raises(ValueError, match="support"):
        network(outputs)


def test_each_weight_can_have_a_step_size_of_its_own():
    rule = GradientStep(2, 3, size=0.1, learned=True, per_feature=True)
    rule.log_size.data[1] = torch.tensor([0.1, 0.2, 0.0001]).log()
    start = PosteriorParameters(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
    pull = Pull((torch.ones(2, 1, 3), None), (torch.zeros(2, 1, 3), torch.zeros(2, 1, 3)), torch.ones(1, 3), 1.0)
    torch.testing.assert_close(rule(1, start, pull).loc, torch.tensor([-0.1, -0.2, -0.0001]).expand(2, 1, 3))
    assert len(list(rule.parameters())) == 2
