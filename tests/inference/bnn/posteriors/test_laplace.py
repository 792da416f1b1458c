"""Laplace's approximation: exact for linear regression, linearised for networks; what it refuses."""

import sys

import pytest
import torch
from torch import nn

from data.errors import UserError
from data.items import LabelledItems
from inference.bnn.bnn import BNN
from inference.bnn.posterior import WeightPosterior
from inference.bnn.posteriors.laplace import laplace_posterior, prior_precision
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, LaplaceWeightPrior
from models.likelihoods import GaussianLikelihood
from tests.inference.bnn.conftest import blobs, items

pytest.importorskip("laplace")


class TestLinearRegression:
    """The posterior is Gaussian and the network linear, so that nothing is approximated."""

    @pytest.mark.parametrize("structure", ["full", "kron"])
    def test_posterior_evidence_and_predictive_are_exact(self, exact, structure):
        points = WeightPosterior(exact.model, exact.mean.expand(2, 3), None)
        fitted = laplace_posterior(points, exact.data, structure=structure)
        assert fitted.evidence() == pytest.approx(exact.evidence, abs=1e-3)
        draws = fitted.sample(8000)
        torch.testing.assert_close(draws.mean(0), exact.mean, atol=0.01, rtol=0)
        torch.testing.assert_close(draws.T.cov(), exact.covariance, atol=0.002, rtol=0.05)
        x = torch.randn(4, 3)
        outputs = fitted.outputs(x, num_samples=8000)[..., 0]
        torch.testing.assert_close(outputs, draws @ x.T)
        torch.testing.assert_close(outputs.var(0), exact.predictive_variance(x), atol=0, rtol=0.08)

    @pytest.mark.parametrize("inputs", [1, 3])
    def test_a_full_hessian_is_in_double_precision_whatever_the_network_is_in(self, inputs):
        x = torch.randn(40, inputs)
        model = BayesianNetwork(nn.Linear(inputs, 1, bias=False), GaussianWeightPrior(), GaussianLikelihood(1.0, learned=False))
        points = WeightPosterior(model, model.initial_weights(1), None)
        (((scale,),),) = laplace_posterior(points, LabelledItems(x, x[:, 0], ()), structure="full").scales
        assert torch.get_default_dtype() == torch.float32
        expected = x.double().T @ x.double() + torch.eye(inputs, dtype=torch.float64)
        torch.testing.assert_close(torch.linalg.inv(scale @ scale.mT), expected, atol=1e-12, rtol=1e-12)

    def test_the_tuned_prior_has_the_greater_evidence(self, exact):
        points = WeightPosterior(exact.model, exact.mean[None], None)
        given, tuned = (laplace_posterior(points, exact.data, tune=tune).evidence() for tune in (False, True))
        assert tuned > given + 0.01


class TestNetworks:
    def fitted(self, **options):
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        return BNN.fit(network, *blobs(60), algorithm="laplace", epochs=5, learning_rate=0.02, **options).posterior

    def test_functions_are_the_first_order_of_the_network(self, float64):
        fitted = self.fitted(structure="full")
        x, shift = torch.randn(5, 4), 1e-4 * torch.randn(1, fitted.model.num_weights)
        line = fitted.functions(x, fitted.loc + 1e4 * shift, torch.zeros(1, dtype=torch.long)) - fitted.model.map_weights(
            x, fitted.loc
        )
        slope = (fitted.model.map_weights(x, fitted.loc + shift) - fitted.model.map_weights(x, fitted.loc - shift)) / 2
        torch.testing.assert_close(line, 1e4 * slope, atol=1e-5, rtol=1e-4)

    def test_of_the_last_layer_alone_leaves_the_others_points(self):
        fitted = self.fitted(weights="last")
        draws = fitted.sample(10)
        torch.testing.assert_close(draws[:, :40], fitted.loc[:, :40].expand(10, -1))
        assert bool((draws[:, 40:].std(0) > 0).all())

    def test_several_networks_are_drawn_in_turn(self):
        network = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))
        model = BayesianNetwork(network, GaussianWeightPrior(0.02))
        points = WeightPosterior(model, model.initial_weights(3), None)
        draws = laplace_posterior(points, items(600), structure="full").sample(6)
        nearest = torch.cdist(draws, points.loc).argmin(1)
        assert nearest.tolist() == [0, 1, 2, 0, 1, 2]


class TestPriorPrecision:
    def test_is_as_short_as_it_can_be(self):
        assert prior_precision(GaussianWeightPrior(0.5), [2, 3]).tolist() == 4.0
        assert prior_precision(GaussianWeightPrior(torch.tensor([0.5, 0.5, 1, 1, 1])), [2, 3]).tolist() == [4.0, 1.0]
        assert len(prior_precision(GaussianWeightPrior(torch.tensor([0.5, 0.4, 1, 1, 1])), [2, 3])) == 5


class TestRefuses:
    X, Y = torch.randn(20, 4), torch.randn(20)

    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            ({"prior": LaplaceWeightPrior(1.0)}, "needs a Gaussian prior"),
            ({"weights": "bias"}, "all weights or those of the last layer"),
            ({"likelihood": "poisson", "y": torch.ones(20, dtype=torch.long)}, "categorical and Gaussian likelihoods"),
        ],
    )
    def test_what_it_has_no_part_for(self, arguments, wanted):
        arguments = {"y": self.Y, "algorithm": "laplace", "epochs": 1} | arguments
        with pytest.raises(UserError, match=wanted):
            BNN.fit(nn.Linear(4, 1), self.X, **arguments)

    def test_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "laplace", None)
        with pytest.raises(UserError, match=r"pip install 'sibyl-vib\[laplace\]'"):
            BNN.fit(nn.Linear(4, 1), self.X, self.Y, algorithm="laplace", epochs=1, likelihood=GaussianLikelihood(0.5))
