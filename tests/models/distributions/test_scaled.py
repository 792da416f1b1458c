"""Weights in units of their scale: the KL does not depend on units, and where both share a scale not on that either."""

import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from models.bayesian.weight_priors import build_weight_prior
from models.distributions.diagonal import DiagonalGaussian
from models.distributions.low_rank import low_rank_gaussian
from models.distributions.scaled import Scaled, ScaledGaussian

P = 7


def scales():
    log_scale = (0.5 * torch.randn(P)).requires_grad_()
    return log_scale, lambda: log_scale


class TestScaled:
    @pytest.mark.parametrize("family", [Normal, Laplace])
    def test_density_moments_and_kl_are_those_of_the_family_at_that_scale(self, family, float64):
        log_scale, get = scales()
        p = Scaled(build_weight_prior("gaussian" if family is Normal else "laplace")(P), get).expand([2])
        plain = family(torch.zeros(P), log_scale.exp())
        w, q = torch.randn(2, P), DiagonalGaussian(torch.randn(2, P), torch.randn(2, P) - 1)
        torch.testing.assert_close(p.log_prob(w), plain.log_prob(w).sum(-1))
        torch.testing.assert_close(p.variance, plain.variance.expand(2, P))
        torch.testing.assert_close(p.sample((4000,)).std(0), plain.stddev.detach().expand(2, P), rtol=0.15, atol=0)
        exact = kl_divergence(Normal(q.loc, q.log_scale.exp()), plain).sum(-1)
        torch.testing.assert_close(kl_divergence(q, p), exact)
        torch.testing.assert_close(kl_divergence(q.as_normal(), p), exact)
        (gradient,) = torch.autograd.grad(kl_divergence(q, p).sum(), log_scale)
        torch.testing.assert_close(gradient, torch.autograd.grad(exact.sum(), log_scale)[0])

    @pytest.mark.parametrize("family", ["gaussian", "laplace", "scale-mixture", "spike-and-slab"])
    def test_the_rate_of_a_posterior_of_the_same_scales_does_not_depend_on_them(self, family, float64):
        log_scale, get = scales()
        standard = DiagonalGaussian(torch.randn(3, P), torch.randn(3, P) - 1)
        q, p = ScaledGaussian(standard, get), Scaled(build_weight_prior(family)(P), get)
        explicit = DiagonalGaussian(q.loc.detach(), q.log_scale.detach())
        torch.testing.assert_close(kl_divergence(q, p), kl_divergence(explicit, p))
        assert not kl_divergence(q, p).requires_grad
        torch.testing.assert_close(q.log_prob(q.loc).detach(), explicit.log_prob(explicit.loc))
        other = Scaled(build_weight_prior(family)(P), lambda: log_scale + 1)
        assert bool((kl_divergence(q, other) != kl_divergence(q, p)).all()), "of other scales it does"

    def test_a_low_rank_posterior_has_the_rate_of_the_plain_prior(self, float64):
        log_scale, get = scales()
        q = low_rank_gaussian(torch.randn(2, P), torch.randn(2, P), torch.randn(2, P, 2))
        plain = Normal(torch.zeros(P), log_scale.exp().detach())
        exact = kl_divergence(q, torch.distributions.MultivariateNormal(plain.mean, plain.variance.diag()).expand([2]))
        torch.testing.assert_close(kl_divergence(q, Scaled(build_weight_prior("gaussian")(P), get)).detach(), exact)
