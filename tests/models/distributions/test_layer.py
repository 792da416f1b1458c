"""A layer's Gaussian: its draws and its log-density."""

import torch

from models.distributions.layer import LayerNormal


def test_draws_have_the_moments(float64):
    q = LayerNormal(torch.randn(2, 3, 2, 2), torch.rand(3, 1, 1) + 0.1)
    draws = q.rsample((40_000,))
    assert q.log_prob(draws[:5]).shape == (5, 2)
    torch.testing.assert_close(draws.mean(0), q.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), q.variance, atol=0.05, rtol=0)
