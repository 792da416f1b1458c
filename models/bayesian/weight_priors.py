"""Priors m(w) over all weights of a network, as one vector."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.distributions.mixture import GaussianMixture
from models.distributions.scale_mixture import ScaleMixture


class WeightPrior(nn.Module):
    """Base class: ``prior(P)`` is a distribution with event_shape ``[P]``. Its numbers are buffers: fixed, not learned.

    Attributes:
        sees_data: whether it is made from the training data; a rate against it then bounds no information about them.
    """

    sees_data: ClassVar[bool] = False

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        raise NotImplementedError


class GaussianWeightPrior(WeightPrior):
    """w_i ~ N(0, scale²). KL in closed form.

    Args:
        scale: standard deviation, a number or ``[P]``.
    """

    scale: Tensor

    def __init__(self, scale: float | Tensor = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        normal = dist.Normal(torch.zeros_like(self.scale), self.scale, validate_args=False)
        return normal.expand([num_weights]).to_event(1)


class LaplaceWeightPrior(GaussianWeightPrior):
    """w_i ~ Laplace(0, scale), variance 2 scale². KL in closed form."""

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        laplace = dist.Laplace(torch.zeros_like(self.scale), self.scale, validate_args=False)
        return laplace.expand([num_weights]).to_event(1)


class ScaleMixtureWeightPrior(WeightPrior):
    """w_i ~ π N(0, wide²) + (1 − π) N(0, narrow²), weight by weight. KL by an upper bound or Monte Carlo.

    Source: Blundell et al. 2015, equation 7.

    Args:
        wide, narrow: standard deviations.
        probability: π of the wide one.
        kl: ``"bound"`` or ``"monte_carlo"``, see :class:`ScaleMixture`.
    """

    scales: Tensor
    logits: Tensor

    def __init__(self, wide: float = 1.0, narrow: float = math.exp(-6), *, probability: float = 0.5, kl: str = "bound") -> None:
        super().__init__()
        if not 0 < probability < 1:
            raise ValueError(f"probability = {probability} must be between 0 and 1")
        self.register_buffer("scales", torch.tensor([wide, narrow]))
        self.register_buffer("logits", torch.tensor([probability, 1 - probability]).log())
        self.kl = kl

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        return ScaleMixture(self.logits, self.scales, kl=self.kl).expand([num_weights]).to_event(1)


class SpikeAndSlabWeightPrior(ScaleMixtureWeightPrior):
    """w_i ~ π N(0, slab²) + (1 − π) N(0, spike²) with a spike of small but finite width.

    With an atom at zero the KL from a Gaussian would not see the spike at all: it would be KL(q ‖ slab) − log π.

    Args:
        slab, spike: standard deviations.
        probability: π of the slab.
    """

    def __init__(self, slab: float = 1.0, spike: float = 1e-3, *, probability: float = 0.5, kl: str = "bound") -> None:
        super().__init__(slab, spike, probability=probability, kl=kl)


class MixtureWeightPrior(WeightPrior):
    """m(w) = 1/K Σ_k N(w; μ_k, diag σ_k²), jointly over all weights: the marginal m̃ of β-BNN, refreshed by :meth:`refresh`.

    Source: "On regularizing deep learning using mutual information", slide "β-BNN".

    Args:
        loc: ``[K, P]``.
        log_scale: the same shape.
        kl: ``"bound"`` or ``"monte_carlo"``, see :class:`~models.distributions.mixture.GaussianMixture`.
    """

    loc: Tensor
    log_scale: Tensor
    sees_data = True

    def __init__(self, loc: Tensor, log_scale: Tensor, *, kl: str = "bound") -> None:
        super().__init__()
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("log_scale", log_scale.detach().clone())
        self.kl = kl
        self.known: tuple[Any, ...] = ()  # the mixture, and the tensors and versions it was made from

    @classmethod
    def standard(cls, posteriors: int, num_weights: int) -> MixtureWeightPrior:
        """θ_k = (0, I) for all K: the start of the algorithm, where m̃ = N(0, I)."""
        return cls(torch.zeros(posteriors, num_weights), torch.zeros(posteriors, num_weights))

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        if not self.is_known():  # what distances to the components need is kept from step to step
            uniform = self.loc.new_zeros(len(self.loc))
            mixture = GaussianMixture(uniform, self.loc.clone(), self.log_scale.exp(), kl=self.kl, validate_args=False)
            self.known = (mixture, self.loc, self.loc._version, self.log_scale, self.log_scale._version)
        return self.known[0]

    def is_known(self) -> bool:
        """Whether the mixture of the last call is of today's components: no other tensors, and none written to since."""
        if not self.known:
            return False
        _, loc, loc_version, log_scale, scale_version = self.known
        same = loc is self.loc and log_scale is self.log_scale
        return same and (loc._version, log_scale._version) == (loc_version, scale_version)

    @torch.no_grad()
    def refresh(self, rows: slice, loc: Tensor, log_scale: Tensor) -> None:
        """Put new posteriors in place of components ``rows``."""
        self.loc[rows] = loc
        self.log_scale[rows] = log_scale


class PriorName(StrEnum):
    """Priors over weights by name."""

    GAUSSIAN = "gaussian"
    """N(0, scale²)."""
    LAPLACE = "laplace"
    """Laplace(0, scale)."""
    SCALE_MIXTURE = "scale-mixture"
    """Half N(0, scale²), half N(0, (scale e⁻⁶)²)."""
    SPIKE_AND_SLAB = "spike-and-slab"
    """Half N(0, scale²), half N(0, (scale/1000)²)."""


def build_weight_prior(name: str, scale: float = 1.0) -> WeightPrior:
    """A prior by :class:`PriorName`.

    Raises:
        ValueError: unknown name, or a scale that is not positive.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"the prior's scale must be positive, not {scale}")
    if name not in list(PriorName):
        raise ValueError(f"unknown prior {name!r}: choose {', '.join(PriorName)}")
    match PriorName(name):
        case PriorName.GAUSSIAN:
            return GaussianWeightPrior(scale)
        case PriorName.LAPLACE:
            return LaplaceWeightPrior(scale)
        case PriorName.SCALE_MIXTURE:
            return ScaleMixtureWeightPrior(scale, scale * math.exp(-6))
        case PriorName.SPIKE_AND_SLAB:
            return SpikeAndSlabWeightPrior(scale, scale * 1e-3)
