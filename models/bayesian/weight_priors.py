"""Priors m(w) over all weights of a network, as one vector."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.bayesian.weight_scales import WeightScales
from models.distributions.diagonal import CentredNormal
from models.distributions.mixture import GaussianMixture
from models.distributions.scale_mixture import ScaleMixture
from models.distributions.scaled import Scaled


class WeightPrior(nn.Module):
    """Base class: ``prior(P)`` is a distribution with event_shape ``[P]``. Numbers that are buffers are not learned.

    Attributes:
        sees_data: whether it is made from the training data, or learned: a rate against it bounds no information about them.
    """

    sees_data: bool = False

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
        normal = CentredNormal(torch.zeros_like(self.scale), self.scale, validate_args=False)
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

    Raises:
        ValueError: a ``probability`` that is none.
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
        kl: ``"bound"`` or ``"monte_carlo"``, see :class:`ScaleMixture`.
    """

    def __init__(self, slab: float = 1.0, spike: float = 1e-3, *, probability: float = 0.5, kl: str = "bound") -> None:
        super().__init__(slab, spike, probability=probability, kl=kl)


class ScaledWeightPrior(WeightPrior):
    """w_i = s_i z_i with z ~ ``base``: one of the families above, with a scale for each group of weights.

    Learned scales maximise the ELBO, which is a bound on the log evidence: empirical Bayes. Where q may be any Gaussian the
    optimum of N(0, s²) is s² = mean(μ² + σ²) over the group, and that of Laplace(0, s) is mean E|w|; the other families have no
    closed form, and a gradient step serves them all (see :class:`~models.distributions.scaled.ScaledGaussian` for why it is
    also the faster one).

    Source: MacKay 1992; Blundell et al. 2015, section 3.3, who found no gain where each scale was of all weights.

    Args:
        base: in units of the scales.
        scales: s.
    """

    def __init__(self, base: WeightPrior, scales: WeightScales) -> None:
        super().__init__()
        self.base, self.scales = base, scales

    @property
    def sees_data(self) -> bool:  # type: ignore[override]
        return self.base.sees_data or isinstance(self.scales.log_scale, nn.Parameter)

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        return Scaled(self.base(num_weights), self.scales)


class MixtureWeightPrior(WeightPrior):
    """m(w) = 1/K Σ_k N(w; μ_k, diag σ_k²), jointly over all weights: the marginal m̃ of β-BNN, refreshed by :meth:`refresh`.

    Source: "On regularizing deep learning using mutual information", slide "β-BNN".

    Args:
        loc: ``[K, P]``.
        log_scale: the same shape.
        kl: ``"bound"`` or ``"monte_carlo"``, see :class:`~models.distributions.mixture.GaussianMixture`.
        start: what stands in for the mixture until :meth:`begin`, when there are no posteriors yet; a Gaussian around 0.

    Attributes:
        begun: whether it is the mixture, or still ``start``.
    """

    loc: Tensor
    log_scale: Tensor
    sees_data = True

    def __init__(self, loc: Tensor, log_scale: Tensor, *, kl: str = "bound", start: WeightPrior | None = None) -> None:
        super().__init__()
        self.start, self.begun = start, start is None
        self.register_load_state_dict_post_hook(has_begun)
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("log_scale", log_scale.detach().clone())
        self.kl = kl
        self.known: tuple[Any, ...] = ()  # the mixture, and the tensors and versions it was made from

    @classmethod
    def standard(cls, posteriors: int, num_weights: int, start: WeightPrior | None = None) -> MixtureWeightPrior:
        """θ_k = (0, I) for all K posteriors of ``num_weights`` weights: the start of the algorithm, where m̃ = N(0, I), or
        ``start``."""
        return cls(torch.zeros(posteriors, num_weights), torch.zeros(posteriors, num_weights), start=start)

    @torch.no_grad()
    def begin(self) -> None:
        """From here on it is the mixture, and every component is ``start``, until a posterior takes its place."""
        if self.start is not None:
            variance = self.start(self.log_scale.shape[-1]).variance
            self.log_scale.copy_(0.5 * (variance.squeeze(-2) if variance.dim() > 2 else variance).log())
        self.begun = True

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        if self.start is not None and not self.begun:
            return self.start(num_weights)
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


def has_begun(prior: MixtureWeightPrior, _: Any) -> None:
    """A mixture that is read back has its posteriors."""
    prior.begun = True


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
