"""Regret: what predicting by q instead of the right posterior costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.diagnostics.nuts import monte_carlo_error
from inference.evaluation.metrics import confidence_interval


@dataclass(frozen=True)
class Regret:
    """Mean of log p*(y given x, D) − log q(y given x, D) over queries, nats per query.

    Attributes:
        mean: 0 for the right posterior, and positive on average for every other.
        ci95: half-width of the 95 % interval over tasks; a task's queries share its posterior.
        error: 95 % half-width of the reference's own error; 0 where the reference is exact.
        tasks: how many.
    """

    mean: float
    ci95: float
    error: float
    tasks: int

    def __str__(self) -> str:
        own = f" (reference ± {self.error:.3f})" if self.error else ""
        return f"{self.mean:.3f} ± {self.ci95:.3f}{own}"


def regret(reference: Tensor, predicted: Tensor) -> Regret:
    """Regret from log densities of the queries' true targets, each query by itself.

    Args:
        reference: log p*(y given x, D), nats: ``[tasks, query]``, or ``[chains, tasks, query]`` where a sampler gives it; its
            chains then tell the reference's own error.
        predicted: log q(y given x, D), nats: ``[tasks, query]``.

    Source: DeGroot and Fienberg 1983 for the log score; the mean over p* is KL(p* ‖ q).
    """
    if reference.dim() == predicted.dim():
        reference = reference[None]
    pooled = reference.logsumexp(0) - math.log(len(reference))
    per_task = (pooled - predicted).double().mean(-1)
    error = monte_carlo_error(reference.double().mean((-1, -2))) if len(reference) > 1 else 0.0
    return Regret(float(per_task.mean()), confidence_interval(per_task), error, len(per_task))


def mixture_log_density(log_densities: Tensor, dim: int = 0) -> Tensor:
    """log of the mean density over draws: log E_q p(y given x, w), nats, from
    ``log_densities`` ``[draws, ...]``."""
    return log_densities.logsumexp(dim) - math.log(log_densities.shape[dim])


def linear_log_predictive(mean: Tensor, covariance: Tensor, x: Tensor, y: Tensor, noise: Tensor | float) -> Tensor:
    """log q(y given x) = log N(⟨x, m⟩, xᵀ C x + noise²) of linear regression under q(w) = N(m, C), exact, nats.

    Args:
        mean, covariance: ``[tasks, D]`` and ``[tasks, D, D]``.
        x, y: ``[tasks, query, D]`` and ``[tasks, query]``.
        noise: standard deviation.
    """
    variance = ((x @ covariance) * x).sum(-1) + torch.as_tensor(noise).square()
    return torch.distributions.Normal((x @ mean[..., None])[..., 0], variance.sqrt()).log_prob(y)
