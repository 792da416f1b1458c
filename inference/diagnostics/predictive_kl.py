"""KL divergence between posterior predictive distributions, item by item: how far an approximation is from NUTS, say."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

POINTS = 4  # of the quadrature per narrowest standard deviation
TAIL = 8  # standard deviations beyond the outermost means that it covers


@torch.no_grad()
def predictive_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p_i ‖ q_i) = E_p[log p_i(y) − log q_i(y)] of each item i, nats: ``[n]``.

    A predictive is the equal mixture over its draws of the weights, p_i(y) = 1/S Σ_s p(y given x_i, w_s). With p the
    reference this is the regret of predicting by q instead. Classes are summed over; real targets are integrated by the
    trapezoid rule, whose error is far below that of the draws: where these differ by more than the noise, S of them leave an
    excess of about (their range / noise) / S. The KL between two halves of the reference's draws shows how much it is.

    Args:
        p, q: ``batch_shape`` ``[draws, n]``, as :meth:`~inference.bnn.posterior.NetworkPosterior.observation` gives: both
            with finitely many values (categorical, Bernoulli), or both normal.

    Raises:
        ValueError: they are not of the same n items, or of another kind.
    """
    if p.batch_shape[1:] != q.batch_shape[1:]:
        raise ValueError(f"predictives of {p.batch_shape[1]} and {q.batch_shape[1]} items: give both the same inputs")
    if p.has_enumerate_support and q.has_enumerate_support:
        values = p.enumerate_support(expand=False)
        log_p, log_q = (log_mean(d.log_prob(values).double(), 1) for d in (p, q))
        return (log_p.exp() * (log_p - log_q)).sum(0)
    if not (isinstance(p, Normal) and isinstance(q, Normal)):
        raise ValueError(f"no KL of {type(p).__name__} and {type(q).__name__} predictives: take classes or normal targets")
    return torch.stack([normal_mixture_kl(column(p, i), column(q, i)) for i in range(p.batch_shape[1])])


def column(predictive: Normal, item: int) -> Normal:
    """The components of one item's predictive, in double precision: batch_shape ``[draws]``."""
    return Normal(predictive.loc[:, item].double(), predictive.scale[:, item].double(), validate_args=False)


def normal_mixture_kl(p: Normal, q: Normal) -> Tensor:
    """KL between the equal mixtures of normals ``[S]`` and ``[T]`` by quadrature, nats."""
    low, high, step = (p.loc - TAIL * p.scale).min(), (p.loc + TAIL * p.scale).max(), float(p.scale.min()) / POINTS
    y = torch.linspace(float(low), float(high), math.ceil(float(high - low) / step) + 1, dtype=p.loc.dtype, device=p.loc.device)
    log_p, log_q = (log_mean(d.log_prob(y[:, None]), 1) for d in (p, q))
    return torch.trapezoid(log_p.exp() * (log_p - log_q), y)


def log_mean(log_densities: Tensor, dim: int) -> Tensor:
    """log of the mean of exp(``log_densities``) over a dimension."""
    return log_densities.logsumexp(dim) - math.log(log_densities.shape[dim])
