"""Closed-form pull-backs against torch.func, and predictors against their definitions."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from models.distributions.mirrored import Mirrored
from models.networks.functional import FunctionalNetwork
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import PREDICTORS, CosinePredictor, DistancePredictor, PerceptronPredictor, takes_mirrored


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_closed_form_equals_reverse_mode(name, batch):
    predictor = PREDICTORS[name](7.0).double()
    features, weights = torch.randn(*batch, 11, 6), torch.randn(*batch, 4, 6)
    cotangent = torch.randn(*batch, 11, 4)
    features = predictor.prepare(features)
    closed = predictor.pull_back(features, weights, cotangent)
    generic = predictor.generic_pull_back(features, weights, cotangent)
    torch.testing.assert_close(closed, generic, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PREDICTORS)
def test_pull_back_is_itself_differentiable(name):
    predictor = PREDICTORS[name](3.0).double()
    features, cotangent = torch.randn(5, 4), torch.randn(5, 3, requires_grad=True)
    weights = torch.randn(3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, v: predictor.pull_back(features, w, v), (weights, cotangent))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PREDICTORS)
def test_expected_outputs_are_those_of_draws_and_their_pull_back_the_derivative(name):
    torch.manual_seed(0)
    predictor = PREDICTORS[name](3.0).double()
    features, loc, scale = predictor.prepare(torch.randn(5, 200)), torch.randn(3, 200), torch.rand(3, 200)
    scale[0] *= 3  # so that a mean alone is told from it
    draws = predictor.outputs(features, loc + scale * torch.randn(4000, 3, 200)).mean(0)
    expected = predictor.mean_outputs(features, loc, scale.square())
    spread = predictor.outputs(features, loc + scale * torch.randn(100, 3, 200)).std(0)
    assert bool(((draws - expected).abs() < 0.1 * spread).all())
    cotangent = torch.randn(5, 3)
    derivative = torch.autograd.functional.vjp(lambda w: predictor.mean_outputs(features, w, scale.square()), loc, cotangent)[1]
    torch.testing.assert_close(predictor.mean_pull_back(features, loc, scale.square(), cotangent), derivative)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("draws", [(1,), (4,), (4, 2)])
def test_draws_in_front_of_the_weights_are_each_what_it_is_alone(name, draws):
    """Although they are one product."""
    predictor = PREDICTORS[name](7.0).double()
    features, weights = predictor.prepare(torch.randn(3, 11, 6)), torch.randn(*draws, 3, 4, 6, requires_grad=True)
    cotangent, variance = torch.randn(*draws, 3, 11, 4), torch.rand(3, 4, 6)
    together = [
        predictor.outputs(features, weights),
        predictor.pull_back(features, weights, cotangent),
        predictor.mean_outputs(features, weights, variance),
        predictor.mean_pull_back(features, weights, variance, cotangent),
    ]
    (slope,) = torch.autograd.grad(together[0], weights, cotangent)
    for at in itertools.product(*map(range, draws)):
        one, along = weights[at].detach().requires_grad_(), cotangent[at]
        alone = [
            predictor.outputs(features, one),
            predictor.pull_back(features, one, along),
            predictor.mean_outputs(features, one, variance),
            predictor.mean_pull_back(features, one, variance, along),
        ]
        torch.testing.assert_close([part[at] for part in together], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope[at], torch.autograd.grad(alone[0], one, along)[0], rtol=1e-12, atol=1e-12)


def test_distance_is_squared_distance_up_to_a_constant_of_the_query():
    predictor, features, weights = DistancePredictor(2.0), torch.randn(5, 4), torch.randn(3, 4)
    squared = -0.5 * 2.0 * torch.cdist(features, weights).square()
    torch.testing.assert_close(predictor(features, weights).softmax(-1), squared.softmax(-1))


def test_cosine_ignores_lengths():
    predictor, features, weights = CosinePredictor(), torch.randn(5, 4), torch.randn(3, 4)
    torch.testing.assert_close(predictor(3 * features, 0.2 * weights), predictor(features, weights))
    expected = 10 * F.cosine_similarity(features[:, None], weights[None], dim=-1)
    torch.testing.assert_close(predictor(features, weights), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_a_perceptron_is_the_network_of_the_same_weights(batch):
    """Outputs and pull-backs, with draws in front of the tasks and without."""
    layers = [torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)]
    network = NetworkPredictor(FunctionalNetwork(torch.nn.Sequential(*layers)), outputs=3)
    perceptron = PerceptronPredictor((2, 5, 4, 3))
    assert perceptron.num_weights == network.num_weights
    items, weights = torch.randn(3, 7, 2), torch.randn(*batch, 1, perceptron.num_weights)
    torch.testing.assert_close(perceptron(items, weights), network(items, weights))
    cotangent = torch.randn(*batch, 7, 3)
    torch.testing.assert_close(perceptron.pull_back(items, weights, cotangent), network.pull_back(items, weights, cotangent))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PREDICTORS)
def test_outputs_of_pairs_are_those_of_the_draws(name):
    predictor = PREDICTORS[name]().double()
    features, drawn = torch.randn(3, 11, 6), Mirrored(torch.randn(2, 3, 4, 6), 0.3 * torch.randn(5, 2, 3, 4, 6))
    assert takes_mirrored(predictor)
    with torch.no_grad():
        torch.testing.assert_close(predictor(features, drawn), predictor(features, drawn.written()), rtol=1e-10, atol=1e-10)


class Doubled(CosinePredictor):
    """Other outputs by the parts that give them."""

    def linearised(self, features, weights, variance=None):
        outputs, pull_back = super().linearised(features, weights, variance)
        return 2 * outputs, lambda cotangent: 2 * pull_back(cotangent)


class Shifted(DistancePredictor):
    """Other outputs."""

    def outputs(self, features, weights):
        return super().outputs(features, weights) + torch.arange(weights.shape[-2])


@pytest.mark.parametrize("kind", [Doubled, Shifted, lambda: PerceptronPredictor((6, 2, 4)), torch.nn.Identity])
def test_pairs_are_for_predictors_whose_own_form_they_have(kind):
    assert not takes_mirrored(kind())
    replaced = CosinePredictor()
    replaced.outputs = lambda features, weights: weights
    assert not takes_mirrored(replaced)
    hooked = CosinePredictor()
    hooked.register_forward_pre_hook(lambda module, given: None)
    assert not takes_mirrored(hooked)
