"""Low-rank Gaussians: the KL against dense Gaussians and against Monte Carlo."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from models.bayesian.weight_priors import GaussianWeightPrior, LaplaceWeightPrior
from models.distributions.low_rank import correlation_information, low_rank_gaussian


def gaussian(dim=6, rank=2, batch=()):
    return low_rank_gaussian(torch.randn(*batch, dim), torch.randn(*batch, dim), torch.randn(*batch, dim, rank))


class TestKl:
    @pytest.mark.parametrize("rank", [1, 2, 8])
    def test_equals_that_of_dense_gaussians(self, float64, rank):
        q, scale = gaussian(rank=rank, batch=(3,)), torch.rand(6) + 0.5
        dense = MultivariateNormal(q.loc, q.covariance_matrix)
        expected = kl_divergence(dense, MultivariateNormal(torch.zeros(6), torch.diag(scale**2)))
        torch.testing.assert_close(kl_divergence(q, GaussianWeightPrior(scale)(6)), expected)

    def test_against_a_prior_that_is_not_gaussian(self, float64):
        q, p = gaussian(), LaplaceWeightPrior(0.7)(6)
        draws = q.sample((40_000,))
        log_ratio = q.log_prob(draws) - p.log_prob(draws)
        error = float(log_ratio.std()) / math.sqrt(len(draws))
        assert float(kl_divergence(q, p)) == pytest.approx(float(log_ratio.mean()), abs=4 * error)

    def test_without_a_factor_weights_know_nothing_of_each_other(self, float64):
        q = gaussian()
        independent = low_rank_gaussian(q.loc, torch.zeros(6), torch.zeros(6, 2))
        torch.testing.assert_close(correlation_information(independent), torch.tensor(0.0))
        assert float(correlation_information(q)) > 0.1

    def test_refuses_distributions_over_more_than_vectors(self):
        with pytest.raises(NotImplementedError, match="only distributions over vectors"):
            kl_divergence(gaussian(), dist.Normal(torch.zeros(2, 6), 1.0).to_event(2))
