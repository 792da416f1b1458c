"""A Gaussian over a network's layer, one variance per unit or channel."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor


class LayerNormal(dist.TorchDistribution):
    """Independent Gaussians over a layer, N(loc, variance), with one variance for all positions of a channel.

    It is ``Normal(loc, variance.sqrt()).to_event()``, but squares are summed over positions before they meet the variance,
    so that a log-density takes one pass over the layer instead of eight.

    Args:
        loc: ``[n, *shape]``, where ``shape`` is ``[units]`` or ``[channels, height, width]``.
        variance: of ``loc``'s shape but for trailing dimensions of size 1: ``[units]``, ``[channels, 1, 1]``, ``[n, *shape]``.
    """

    arg_constraints: ClassVar = {"variance": dist.constraints.positive}
    has_rsample = True

    def __init__(self, loc: Tensor, variance: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self._variance = loc, variance
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=validate_args)

    @property
    def support(self) -> dist.constraints.Constraint:
        return dist.constraints.independent(dist.constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self._variance.expand_as(self.loc)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        noise = torch.randn(torch.Size(sample_shape) + self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._variance.sqrt() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., n, *shape]`` to ``[..., n]``, nats."""
        value, loc = torch.broadcast_tensors(value.to(self.loc.dtype), self.loc)
        squares = F.mse_loss(value, loc, reduction="none")
        shared = [i for i, size in enumerate(self._variance.shape, -self._variance.dim()) if size == 1]
        positions = math.prod(self.loc.shape[i] for i in shared)
        terms = 0.5 * (squares.sum(shared, keepdim=True) if shared else squares) / self._variance
        normaliser = 0.5 * positions * (2 * math.pi * self._variance).log()
        return -(terms + normaliser).sum(list(range(-len(self.event_shape), 0)))

    def log_prob_of_units(self, value: Tensor) -> Tensor:
        """The terms of :meth:`log_prob`, ``[n, *shape]``: equations 3 and 4 before their sums."""
        return -0.5 * ((value - self.loc).square() / self._variance + (2 * math.pi * self._variance).log())
