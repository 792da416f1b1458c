"""KL between predictives: closed forms, Monte Carlo, and what it refuses."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, Poisson, kl_divergence

from inference.diagnostics.predictive_kl import predictive_kl


class TestRealTargets:
    def test_single_draws_have_the_closed_form_between_normals(self, float64):
        p, q = Normal(torch.tensor([[0.0, 1.0, -3.0]]), 0.5), Normal(torch.tensor([[0.0, 1.4, 2.0]]), 0.8)
        torch.testing.assert_close(
            predictive_kl(p.expand((1, 3)), q.expand((1, 3))), kl_divergence(p, q)[0], atol=1e-6, rtol=1e-6
        )

    def test_equal_draws_say_what_one_says_and_the_order_matters(self, float64):
        p, q = Normal(torch.zeros(7, 1), torch.full((7, 1), 0.5)), Normal(torch.ones(3, 1), torch.full((3, 1), 0.8))
        expected = kl_divergence(Normal(0.0, 0.5), Normal(1.0, 0.8))
        torch.testing.assert_close(predictive_kl(p, q)[0], expected, atol=1e-6, rtol=1e-6)
        assert abs(float(predictive_kl(q, p)[0] - expected)) > 0.1

    def test_many_draws_approach_the_predictive_of_a_gaussian_posterior(self, float64):
        """Draws f ~ N(m, s²) with noise: y ~ N(m, s² + noise²), so the KL of two such predictives is known."""
        grid = torch.linspace(0, 1, 402)[1:-1, None]

        def predictive(mean, spread):
            return Normal(Normal(mean, spread).icdf(grid), torch.full_like(grid, 0.5))

        expected = kl_divergence(Normal(0.0, math.hypot(0.7, 0.5)), Normal(0.3, math.hypot(0.2, 0.5)))
        estimate = predictive_kl(predictive(0.0, 0.7), predictive(0.3, 0.2))
        assert float(estimate[0]) == pytest.approx(float(expected), rel=0.03)

    def test_mixtures_agree_with_monte_carlo(self, float64):
        p = Normal(torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.3], [0.6]]))
        q = Normal(torch.tensor([[-0.5], [1.0], [3.0]]), torch.tensor([[0.5], [1.0], [0.7]]))
        y = p.sample((40_000,)).flatten()[:, None, None]
        difference = p.log_prob(y).exp().mean(1).log() - q.log_prob(y).exp().mean(1).log()
        error = float(difference.std()) / math.sqrt(len(y))
        assert float(predictive_kl(p, q)[0]) == pytest.approx(float(difference.mean()), abs=4 * error)


class TestClasses:
    def test_probabilities_are_averaged_over_draws_first(self, float64):
        p, q = Categorical(logits=torch.randn(4, 5, 3)), Categorical(logits=torch.randn(2, 5, 3))
        expected = kl_divergence(Categorical(p.probs.mean(0)), Categorical(q.probs.mean(0)))
        torch.testing.assert_close(predictive_kl(p, q), expected)
        bernoulli = Bernoulli(torch.full((2, 1), 0.3)), Bernoulli(torch.tensor([[0.4], [0.8]]))
        torch.testing.assert_close(predictive_kl(*bernoulli)[0], kl_divergence(Bernoulli(0.3), Bernoulli(0.6)))


@pytest.mark.parametrize(
    ("q", "wanted"),
    [
        (Normal(torch.zeros(1, 2), 1.0), "predictives of 3 and 2 items"),
        (Poisson(torch.ones(1, 3)), "no KL of Normal and Poisson"),
    ],
)
def test_refuses_what_it_cannot_compare(q, wanted):
    with pytest.raises(ValueError, match=wanted):
        predictive_kl(Normal(torch.zeros(1, 3), 1.0), q)
