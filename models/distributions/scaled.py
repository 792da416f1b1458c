"""Weights measured in units of their scale: w = s z, for priors whose scales are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from models.distributions.diagonal import DiagonalGaussian

LogScales = Callable[[], Tensor]
"""Gives log s, ``[..., P]``: a :class:`~models.bayesian.weight_scales.WeightScales`."""


class Scaled(TorchDistribution):
    """The law of s ∘ z with z ~ ``base``: event_shape ``[P]``; as many laws as there are rows of s.

    Args:
        base: over vectors ``[P]``.
        log_scales: gives log s, ``[..., P]``, differentiable; what its attribute ``batch_shape`` says, ``()`` without one.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, base: TorchDistribution, log_scales: LogScales, *, validate_args: bool | None = False) -> None:
        batch_shape = torch.broadcast_shapes(base.batch_shape, getattr(log_scales, "batch_shape", ()))
        self.base = base if batch_shape == base.batch_shape else base.expand(batch_shape)
        self.log_scales = log_scales
        super().__init__(batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    def expand(self, batch_shape, _instance=None) -> Scaled:
        return Scaled(self.base.expand(batch_shape), self.log_scales)

    @property
    def mean(self) -> Tensor:
        return self.base.mean * self.log_scales().exp()

    @property
    def variance(self) -> Tensor:
        return self.base.variance * (2 * self.log_scales()).exp()

    def rsample(self, sample_shape=()) -> Tensor:
        return self.base.rsample(sample_shape) * self.log_scales().exp()

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            return self.base.sample(sample_shape) * self.log_scales().exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., P] -> [...]``, nats."""
        log_scales = self.log_scales()
        return self.base.log_prob(value * (-log_scales).exp()) - log_scales.sum(-1)


class ScaledGaussian(DiagonalGaussian):
    """N(s ∘ loc, diag (s ∘ exp(log_scale))²), by its parameters in units of s.

    Against a :class:`Scaled` prior of the same scales the KL does not depend on s, so that the gradient of s is that of the
    distortion alone, and s moves as fast as the data tell. With parameters in the weights' own units s would have to wait for
    each posterior to narrow, and the posterior for s: the slow convergence of expectation-maximisation.

    Source: Papaspiliopoulos, Roberts and Sköld 2007 (non-centred parameterisations); Liu, Rubin and Wu 1998 (why the other is
    slow).

    Args:
        standard: in units of s: batch_shape ``[..., 1]`` or less, event_shape ``[P]``.
        log_scales: gives log s, ``[P]``, or more as ``standard`` has it.
        deferred: as in :class:`~models.distributions.diagonal.DiagonalGaussian`.
    """

    def __init__(self, standard: DiagonalGaussian, log_scales: LogScales, *, deferred: bool = False) -> None:
        self.standard, self.log_scales = standard, log_scales
        log_scale = log_scales()
        super().__init__(standard.loc * log_scale.exp(), standard.log_scale + log_scale, deferred=deferred)

    def expand(self, batch_shape, _instance=None) -> DiagonalGaussian:
        return self if (*batch_shape, *self.event_shape) == self.loc.shape else super().expand(batch_shape)


@register_kl(DiagonalGaussian, Scaled)
def _kl_diagonal_scaled(q: DiagonalGaussian, p: Scaled) -> Tensor:
    """In units of the prior's scale, where it is that of the base: KL does not depend on units."""
    if isinstance(q, ScaledGaussian) and q.log_scales is p.log_scales:
        return kl_divergence(q.standard, p.base)
    log_scale = p.log_scales()
    return kl_divergence(DiagonalGaussian(q.loc * (-log_scale).exp(), q.log_scale - log_scale), p.base)


@register_kl(torch.distributions.Independent, Scaled)
def _kl_normal_scaled(q: torch.distributions.Independent, p: Scaled) -> Tensor:
    """q is ``Normal(...).to_event(1)``."""
    if not isinstance(q.base_dist, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"KL({q} || Scaled): only Normal(...).to_event(1) is supported")
    return _kl_diagonal_scaled(DiagonalGaussian(q.base_dist.loc, q.base_dist.scale.log()), p)
