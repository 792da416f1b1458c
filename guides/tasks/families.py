"""Variational families of a task's posterior, and their parameters θ."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import pyro.distributions as dist
from torch import Tensor

from models.plates import ordered_like, plate_noise


class PosteriorParameters(NamedTuple):
    """θ of a batch of tasks.

    Attributes:
        loc: ``[..., tasks, rows, D]``.
        log_scale: the same shape; ignored by a delta posterior.
    """

    loc: Tensor
    log_scale: Tensor


class Family(StrEnum):
    """The variational family of a task's posterior."""

    GAUSSIAN = "gaussian"
    """q(w) = N(loc, diag scale²)."""
    DELTA = "delta"
    """q(w) = δ(w − loc), what the original code uses: no rate, a point estimate."""

    @property
    def has_rate(self) -> bool:
        """Whether KL(q ‖ p) is finite, so that the inner steps descend it."""
        return self is Family.GAUSSIAN

    def distribution(self, parameters: PosteriorParameters) -> dist.TorchDistribution:
        """q_θ with batch_shape ``[..., tasks, 1]`` (the plates) and event_shape ``[rows, D]``."""
        loc = parameters.loc.unsqueeze(-3)
        if self is Family.DELTA:
            return dist.Delta(loc, event_dim=2)
        return dist.Normal(loc, parameters.log_scale.exp().unsqueeze(-3)).to_event(2)

    def expected_gradient(
        self, gradient: Callable[[Tensor], Tensor], parameters: PosteriorParameters, samples: int
    ) -> tuple[Tensor, Tensor | None]:
        """E_ε of a function's gradient with respect to θ, w = loc + exp(log_scale) ε.

        Args:
            gradient: from weights ``[..., tasks, rows, D]`` to the gradient at these weights, of the same shape.
            samples: draws of ε; with 0, or a delta posterior, the expectation is taken at the mean, ε = 0.

        Returns:
            the gradient for ``loc`` and for ``log_scale``; ``None`` where nothing was drawn.
        """
        loc, log_scale = parameters
        if samples == 0 or self is Family.DELTA:
            return gradient(loc), None
        noise = ordered_like(loc, plate_noise((samples, *loc.shape), loc, -3)) * log_scale.exp()
        drawn = gradient(loc + noise)
        return drawn.mean(0), (drawn * noise).mean(0)
