"""A Gaussian prior with one scale for all weights, around a learned start: that of a whole network."""

from __future__ import annotations

import torch
from torch import Tensor

from models.parameters import declare
from models.tasks.priors import GaussianPrior


class IsotropicPrior(GaussianPrior):
    """p(w) = N(θ, τ⁻¹ I): θ, which descent starts from, is learned; τ^−½ is one number, known or learned.

    Source: Grant et al. 2018, "Recasting gradient-based meta-learning as hierarchical Bayes", p(φ given θ).

    Args:
        loc: θ ``[D]``, initial, such as a network's own weights.
        scale: τ^−½, initial.
        learned: whether the scale is; θ always is.
    """

    def __init__(self, loc: Tensor, scale: float, *, learned: bool = False) -> None:
        super().__init__(loc, torch.tensor(scale))
        del self.log_scale
        declare(self, "log_scale", torch.tensor(scale).log(), learned=learned)

    @classmethod
    def from_class_means(cls, means: Tensor) -> IsotropicPrior:
        """Start at the base classes' mean feature and their root mean squared distance from it a dimension,
        ``[classes, D]``."""
        return cls(means.mean(0), float(means.var(0).mean().sqrt().clamp_min(1e-3)))

    def hyperparameters(self) -> tuple[Tensor, ...]:
        return self.loc, self.log_scale.expand_as(self.loc)
