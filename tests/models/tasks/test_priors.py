"""Priors: closed-form KL gradients against autograd, shapes under plates."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from models.tasks.priors import GaussianPrior, MixturePrior, Prior

pytestmark = pytest.mark.usefixtures("float64")


def test_gaussian_kl_gradient_equals_autograd():
    prior = GaussianPrior(torch.randn(6), torch.rand(6) + 0.2)
    loc, log_scale = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 3, 6, requires_grad=True)
    p = Normal(prior.loc, prior.log_scale.exp())
    expected = torch.autograd.grad(kl_divergence(Normal(loc, log_scale.exp()), p).sum(), (loc, log_scale))
    closed = prior.kl_gradient(prior.hyperparameters(), loc, log_scale)
    generic = Prior.kl_gradient(prior, prior.hyperparameters(), loc, log_scale)
    for value in (closed, generic):
        torch.testing.assert_close(value, expected)


def test_mixture_kl_gradient_equals_autograd_of_the_bound():
    prior = MixturePrior.from_class_means(torch.randn(4, 5))
    loc, log_scale = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    p = prior.distribution(prior.hyperparameters(), 3)
    q = Independent(Independent(Normal(loc, log_scale.exp()), 1), 1)
    expected = torch.autograd.grad(kl_divergence(q, p.expand([2])).sum(), (loc, log_scale))
    torch.testing.assert_close(prior.kl_gradient(prior.hyperparameters(), loc, log_scale), expected)


@pytest.mark.parametrize("kind", [GaussianPrior, MixturePrior])
def test_prior_covers_any_number_of_classes(kind):
    prior = kind.from_class_means(torch.randn(7, 5))
    for way in (2, 20):
        p = prior.distribution(prior.hyperparameters(), way)
        assert (p.batch_shape, p.event_shape) == ((), (way, 5))
    assert prior.variance(prior.hyperparameters()).shape == (1, 5)
