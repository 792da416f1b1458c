"""The Gaussian mixture, and KL(Gaussian ‖ mixture), against quadrature in one dimension."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from models.distributions.diagonal import DiagonalGaussian
from models.distributions.mixture import GaussianMixture, component_kl, kl_mixture_bound, kl_mixture_monte_carlo

pytestmark = pytest.mark.usefixtures("float64")


def mixture(kl="bound"):
    loc, scale = torch.tensor([[-2.0], [0.5], [3.0]]), torch.tensor([[0.5], [1.0], [0.7]])
    return GaussianMixture(torch.tensor([0.2, 1.0, -0.5]), loc, scale, kl=kl)


def quadrature_kl(loc, scale, p):
    grid = torch.linspace(loc - 12 * scale, loc + 12 * scale, 40001)
    q = dist.Normal(loc, scale)
    integrand = q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid[:, None]))
    return torch.trapezoid(integrand, grid)


def test_density_integrates_to_one_with_the_stated_moments():
    grid = torch.linspace(-15, 15, 60001)
    density = mixture().log_prob(grid[:, None]).exp()
    mean = torch.trapezoid(density * grid, grid)
    torch.testing.assert_close(torch.trapezoid(density, grid), torch.tensor(1.0))
    torch.testing.assert_close(mean, mixture().mean[0])
    torch.testing.assert_close(torch.trapezoid(density * (grid - mean) ** 2, grid), mixture().variance[0])


def test_samples_follow_the_density():
    draws = mixture().sample((200_000,))
    torch.testing.assert_close(draws.mean(0), mixture().mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0), mixture().variance, atol=0.05, rtol=0)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-2.0, 0.1), (1.7, 2.0)])
def test_bound_above_exact_above_zero_and_monte_carlo_on_it(loc, scale):
    loc, scale = torch.tensor(loc), torch.tensor(scale)
    exact = quadrature_kl(loc, scale, mixture())
    estimate = kl_mixture_monte_carlo(DiagonalGaussian(loc[None], scale[None].log()), mixture(), 400_000)
    torch.testing.assert_close(estimate, exact, rtol=0.01, atol=0.005)
    bound = kl_mixture_bound(DiagonalGaussian(loc[None], scale[None].log()), mixture())
    assert bound >= exact > 0


def test_bound_is_exact_for_one_component_and_at_most_log_k_for_a_member():
    p = GaussianMixture(torch.zeros(1), torch.tensor([[1.0, -1.0]]), torch.tensor([[0.3, 2.0]]))
    q = dist.Normal(torch.tensor([0.2, 0.1]), torch.tensor([1.0, 0.5]))
    exact = kl_divergence(q, dist.Normal(p.loc[0], p.scale[0])).sum()
    torch.testing.assert_close(kl_mixture_bound(DiagonalGaussian(q.loc, q.scale.log()), p), exact)
    torch.testing.assert_close(component_kl(q.loc, q.scale.square(), q.scale.log(), p)[0], exact)
    members = GaussianMixture(torch.zeros(5), torch.randn(5, 3), torch.rand(5, 3) + 0.1)
    assert kl_mixture_bound(DiagonalGaussian(members.loc[2], members.scale[2].log()), members) <= math.log(5) + 1e-12


@pytest.mark.parametrize("kl", ["bound", "monte_carlo"])
def test_registered_kl_has_the_shape_pyro_wants(kl):
    q = dist.Normal(torch.zeros(4, 1, 5, 1), torch.ones(4, 1, 5, 1)).to_event(2)
    p = mixture(kl).expand([5]).to_event(1).expand([4, 1])
    assert kl_divergence(q, p).shape == (4, 1)


def test_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="bound"):
        mixture("exact")
