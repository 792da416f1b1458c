"""NUTS over a network's weights: the exact posterior of linear regression, draws of all chains, what it refuses."""

import pytest
import torch
from torch import nn

from data.errors import UserError
from inference.bnn.bnn import BNN
from inference.bnn.posteriors.chains import ChainPosterior, sample_chains
from models.bayesian.network import BayesianNetwork
from models.likelihoods import GaussianLikelihood


def posterior(chains=2, draws=6, outputs=1) -> ChainPosterior:
    model = BayesianNetwork(nn.Linear(4, outputs, bias=False), None, GaussianLikelihood(0.5, learned=False))
    return ChainPosterior(model, torch.arange(chains * draws, dtype=torch.float32).reshape(chains, draws, 1).expand(-1, -1, 4))


class TestDraws:
    def test_are_of_all_chains_in_turn_from_first_to_last(self):
        fitted = posterior()
        assert fitted.sample(4)[:, 0].tolist() == [0.0, 6.0, 5.0, 11.0]
        assert fitted.components(4).tolist() == [0, 1, 0, 1]
        assert fitted.draws(100) == 12
        assert sorted(fitted.sample(12)[:, 0].tolist()) == list(range(12))

    def test_chains_that_disagree_have_a_large_r_hat(self):
        x, noise = torch.ones(1, 4), torch.randn(2, 500, 4)
        fitted = posterior()
        assert float(ChainPosterior(fitted.model, noise).r_hat(x)) < 1.02
        assert float(ChainPosterior(fitted.model, noise + torch.tensor([0.0, 2.0])[:, None, None]).r_hat(x)) > 1.2


@pytest.mark.slow
def test_lands_on_the_exact_posterior(exact):
    fitted = sample_chains(exact.model, exact.data, torch.randn(2, 3), draws=300, warmup=100, seed=1)
    draws = fitted.chains.flatten(0, 1)
    error = (exact.covariance.diagonal() / 300).sqrt()  # at least half of the 600 draws are worth as many independent ones
    assert bool(((draws.mean(0) - exact.mean).abs() < 4 * error).all())
    torch.testing.assert_close(draws.T.cov(), exact.covariance, atol=float(exact.covariance.max()) / 4, rtol=0)
    assert float(fitted.r_hat(exact.data.items[:5]).max()) < 1.05
    again = sample_chains(exact.model, exact.data, torch.zeros(2, 3), draws=4, warmup=5, seed=1)
    torch.testing.assert_close(
        again.chains, sample_chains(exact.model, exact.data, torch.zeros(2, 3), draws=4, warmup=5, seed=1).chains
    )


class TestRefuses:
    X, Y = torch.randn(20, 4), torch.randn(20)

    @pytest.mark.parametrize(
        ("network", "arguments", "wanted"),
        [
            (nn.Linear(4, 1), {}, "known noise"),
            (nn.Sequential(nn.Linear(4, 200), nn.Tanh(), nn.Linear(200, 1)), {"likelihood": 0.1}, "at most 500 weights"),
        ],
    )
    def test_what_it_could_not_sample(self, network, arguments, wanted):
        if "likelihood" in arguments:
            arguments = {"likelihood": GaussianLikelihood(arguments["likelihood"], learned=False)}
        with pytest.raises(UserError, match=wanted):
            BNN.fit(network, self.X, self.Y, algorithm="nuts", **arguments)
