"""What a posterior over weights writes: training items are observed, held-out ones predicted, weights named and thinned."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from inference.bnn.export import prior_draws, weight_group
from inference.evaluation.arviz import LOO
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, ScaledWeightPrior
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.likelihoods import GaussianLikelihood
from tests.inference.bnn.conftest import items
from tests.inference.bnn.test_posterior import posterior


def drawn(variable) -> torch.Tensor:
    """All draws of a variable, chains one behind the other."""
    return torch.tensor(variable.values).flatten(0, 1)


class TestWeights:
    def test_are_draws_of_the_parameters_by_name(self):
        fitted = posterior()
        saved = fitted.to_arviz(num_samples=24, attributes={"method": "beta-bnn"})
        torch.testing.assert_close(drawn(saved.posterior["weight"]), fitted.model.split(fitted.sample(24))["weight"])
        assert saved.posterior["weight"].dims == ("chain", "draw", "unit", "input")
        assert saved.prior["bias"].dims == saved.posterior["bias"].dims == ("chain", "draw", "unit")
        assert (saved.attrs["method"], saved.attrs["thinned"], saved.attrs["left_out"]) == ("beta-bnn", "none", "none")

    def test_every_chain_has_equally_many_of_each_component(self):
        fitted = posterior(components=3, scale=1e-6)
        saved = fitted.to_arviz(num_samples=25)
        weights = torch.tensor(saved.posterior["bias"].values)
        assert weights.shape[:2] == (4, 9)
        nearest = torch.cdist(weights.flatten(0, 1), fitted.loc[:, -3:]).argmin(-1).view(4, 9)
        assert all(row.bincount().tolist() == [3, 3, 3] for row in nearest)

    def test_of_several_fits_are_points_in_turn(self):
        saved = posterior(scale=None).to_arviz(train=items(30), num_samples=24)
        assert len(drawn(saved.posterior["bias"]).unique(dim=0)) == 3
        assert saved.log_likelihood["labels"].shape == (4, 6, 30)
        assert not {"prior", "prior_predictive"} & set(saved.groups()), "points have none"
        assert saved.attrs["loo"] == LOO["point"]
        assert saved.attrs["draws"].startswith("3 of them in turn")

    def test_that_are_asked_for_are_whole_and_the_others_said_to_be_left_out(self):
        model = posterior().model
        group, notes = weight_group(model, torch.randn(8, model.num_weights), ["weight"])
        assert group.values.keys() == {"weight"}
        assert notes == {"thinned": "none", "left_out": "bias"}
        with pytest.raises(ValueError, match="no parameter 'big': choose weight, bias"):
            weight_group(model, torch.randn(8, model.num_weights), ["big"])

    def test_chains_are_those_of_mcmc(self):
        """The draws are of both chains in turn; each has its own coordinate, in its own order."""

        class Markov(type(posterior())):
            is_markov = True

            def draws(self, num_samples):
                return min(num_samples, 10)

        plain = posterior(components=2)
        fitted = Markov(plain.model, plain.loc, plain.log_scale)
        saved = fitted.to_arviz(num_samples=40)
        assert saved.posterior["bias"].shape == saved.prior["bias"].shape == (2, 5, 3), "there are no more"
        expected = fitted.model.split(fitted.sample(10))["bias"]
        torch.testing.assert_close(torch.tensor(saved.posterior["bias"].values[1]), expected[1::2])
        assert (saved.attrs["draws"], saved.attrs["loo"]) == ("Markov chains", LOO["exact"])


class TestItems:
    def test_only_training_items_are_observed(self):
        """``az.loo`` must not see held-out labels: they are under ``predictions`` alone."""
        fitted, data, test = posterior(), items(1200), items(20)
        saved = fitted.to_arviz(test.items, test.labels, train=data, num_samples=24, seed=3)
        assert saved.log_likelihood["labels"].shape == (4, 6, 1000)
        assert saved.log_likelihood["labels"].dims == ("chain", "draw", "item")
        index = torch.tensor(saved.observed_data["item"].values)
        assert len(index.unique()) == 1000
        torch.testing.assert_close(torch.tensor(saved.observed_data["labels"].values), data.labels[index])
        torch.testing.assert_close(torch.tensor(saved.constant_data["x"].values), data.items[index])
        expected = fitted.log_density(fitted.outputs(data.items[index], num_samples=24, seed=3), data.labels[index])
        torch.testing.assert_close(drawn(saved.log_likelihood["labels"]), expected)
        assert saved.posterior_predictive["labels"].shape == saved.prior_predictive["labels"].shape == (4, 6, 1000)
        assert saved.attrs["conditioned_on"] == "1200 training items, of which observed_data holds 1000"

    def test_prior_predictive_is_of_the_prior(self):
        """Outputs under N(0, 1) weights vary with the length of x; under this posterior they hardly vary at all."""
        fitted = posterior(components=1, scale=1e-3, outputs=1, likelihood=GaussianLikelihood(0.01))
        data = items(40)
        saved = fitted.to_arviz(train=data, num_samples=2000)
        expected = (1 + data.items.square().sum(-1)).sqrt()
        torch.testing.assert_close(drawn(saved.prior_predictive["y"]).std(0), expected, rtol=0.1, atol=0)
        assert float(drawn(saved.posterior_predictive["y"]).std(0).max()) < 0.1

    def test_held_out_items_are_predictions(self):
        fitted, test = posterior(), items(20)
        saved = fitted.to_arviz(test.items, test.labels, num_samples=204)
        assert not {"log_likelihood", "observed_data"} & set(saved.groups())
        probabilities = drawn(saved.predictions["probabilities"])
        torch.testing.assert_close(probabilities, fitted.outputs(test.items, num_samples=204).softmax(-1))
        shares = one_hot(drawn(saved.predictions["labels"]), 3).double().mean(0)
        torch.testing.assert_close(shares, probabilities.double().mean(0), atol=0.15, rtol=0)
        constant = saved.predictions_constant_data
        torch.testing.assert_close(torch.tensor(constant["labels"].values), test.labels)
        density = drawn(saved.predictions["log_density"])
        predicted = torch.tensor(constant["log_predictive_density"].values)
        torch.testing.assert_close(predicted, density.logsumexp(0) - math.log(204))

    def test_other_targets_have_a_mean(self):
        saved = posterior(outputs=1, likelihood=GaussianLikelihood(0.5)).to_arviz(torch.randn(5, 4), num_samples=24)
        assert set(saved.predictions.data_vars) == {"y", "mean"}
        assert "y" not in saved.predictions_constant_data


@pytest.mark.parametrize("draws", [4, 5])
def test_prior_draws_are_of_the_posteriors_own_priors_in_turn(draws):
    model = BayesianNetwork(nn.Linear(3, 1), posteriors=2)
    model.prior = ScaledWeightPrior(GaussianWeightPrior(), WeightScales(model.shapes, PriorScales.LAYER, 2))
    with torch.no_grad():
        model.prior.scales.log_scale.copy_(torch.tensor([[0.0], [20.0]]).expand(2, 2))
        wide = prior_draws(model, draws).abs().amax(-1) > 1e4
    assert wide.tolist() == [bool(i % 2) for i in range(draws)]
