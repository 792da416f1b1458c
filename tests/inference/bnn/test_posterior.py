"""The posterior of a network: draws, predictions, scores, and its ``InferenceData``."""

import math

import pytest
import torch
from torch import nn

from data.items import LabelledItems
from inference.bnn.bnn import BNN
from inference.bnn.posterior import WeightPosterior
from inference.bnn.report import out_of_distribution
from models.bayesian.network import BayesianNetwork
from models.likelihoods import GaussianLikelihood
from tests.inference.bnn.conftest import blobs, items


def posterior(components=3, scale=0.1, outputs=3, likelihood=None) -> WeightPosterior:
    model = BayesianNetwork(nn.Linear(4, outputs), None, likelihood)
    loc = torch.randn(components, model.num_weights)
    own = likelihood.copies(components) if likelihood is not None else None
    return WeightPosterior(model, loc, None if scale is None else torch.full_like(loc, scale).log(), own_likelihood=own)


class TestDraws:
    def test_come_from_all_components_in_turn(self):
        fitted = posterior()
        nearest = torch.cdist(fitted.sample(6), fitted.loc).argmin(1)
        assert nearest.tolist() == fitted.components(6).tolist() == [0, 1, 2, 0, 1, 2]

    def test_with_factors_have_their_covariance(self):
        """diag exp(log_scale)² + F Fᵀ of each component, whose standard deviations are the roots of its diagonal."""
        factor = torch.tensor([[[1.0], [2.0]], [[1.0], [-1.0]]])
        model = BayesianNetwork(nn.Linear(2, 1, bias=False), None)
        fitted = WeightPosterior(model, torch.zeros(2, 2), torch.full((2, 2), 0.5).log(), factor=factor)
        covariance = 0.25 * torch.eye(2) + factor @ factor.mT
        torch.testing.assert_close(fitted.log_scales().exp(), covariance.diagonal(dim1=-2, dim2=-1).sqrt())
        draws = fitted.sample(20_000)
        for k in range(2):
            torch.testing.assert_close(draws[k::2].T.cov(), covariance[k], atol=0.25, rtol=0)

    def test_of_points_are_the_points_once(self):
        assert posterior(scale=None).outputs(torch.randn(5, 4), num_samples=40).shape == (3, 5, 3)


class TestScores:
    def test_predictive_density_is_the_mean_over_draws(self):
        """log (1/S) Σ p_s: equal draws say what one says, whatever their number, and the mean of two is by hand."""
        fitted = posterior(components=1)
        outputs, y = torch.randn(1, 5, 3), torch.tensor([0, 1, 2, 0, 1])
        one = outputs.log_softmax(-1)[0].gather(-1, y[:, None])[:, 0]
        for draws in (1, 7):
            torch.testing.assert_close(fitted.log_predictive(outputs.expand(draws, 5, 3), y), one)
        two = torch.stack([outputs[0], torch.randn(5, 3)])
        expected = two.softmax(-1).mean(0).log().gather(-1, y[:, None])[:, 0]
        torch.testing.assert_close(fitted.log_predictive(two, y), expected)

    def test_nll_and_distortion_of_a_data_set(self):
        fitted, data = posterior(scale=None, components=2), items(30)
        probabilities = fitted.outputs(data.items).softmax(-1)
        true = probabilities.gather(-1, data.labels.expand(2, -1)[..., None])[..., 0]
        scores = fitted.scores(data)
        assert scores["nll"] == pytest.approx(-float(true.mean(0).log().mean()), rel=1e-5)
        assert scores["distortion"] == pytest.approx(-float(true.log().mean(0).sum()), rel=1e-5)

    def test_gibbs_accuracy_is_the_mean_over_draws_not_that_of_their_mean(self):
        """Two networks that are right on half of the items each, one of them surer of itself."""
        fitted = posterior(scale=None, components=2)
        with torch.no_grad():
            fitted.loc.zero_()
            fitted.loc[0, 12], fitted.loc[1, 13] = 9.0, 1.0  # biases of classes 0 and 1
        data = LabelledItems(torch.randn(10, 4), torch.arange(10) % 2 * 1, ("0", "1", "2"))
        data = LabelledItems(data.items, torch.tensor([0] * 8 + [1] * 2), ("0", "1", "2"))
        scores = fitted.scores(data)
        assert scores["accuracy"] == 0.8
        assert scores["gibbs_accuracy"] == pytest.approx(0.5)

    def test_each_draw_is_scored_with_its_own_posteriors_noise(self):
        fitted = posterior(scale=None, components=2, outputs=1, likelihood=GaussianLikelihood(1.0))
        noises = torch.tensor([0.5, 2.0])
        with torch.no_grad():
            fitted.own_likelihood.log_noise.copy_(noises.log())
        x, y = torch.randn(6, 4), torch.randn(6)
        outputs = fitted.outputs(x)
        expected = torch.distributions.Normal(outputs[..., 0], noises[:, None]).log_prob(y).logsumexp(0) - math.log(2)
        torch.testing.assert_close(fitted.log_predictive(outputs, y), expected)

    @pytest.mark.slow
    def test_uncertainty_grows_away_from_the_data(self):
        x, y = blobs(300)
        network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        fitted = BNN.fit(network, x, y, algorithm="beta-bnn", beta=1.0, epochs=42, learning_rate=0.01, scale_speed=5.0)
        inside = LabelledItems(x, y, ("0", "1", "2"))
        outside = LabelledItems(0.3 * torch.randn(200, 4), torch.zeros(200, dtype=torch.long), ("0",))
        assert out_of_distribution(fitted, inside, outside, 40) > 0.7
