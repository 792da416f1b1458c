"""Update rules: how θ of the next step follows from θ and a gradient."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from guides.tasks.families import PosteriorParameters
from models.parameters import declare


class Pull(NamedTuple):
    """What pulls on θ in one step.

    Attributes:
        data: gradient of the (synthetic) distortion for ``loc`` and ``log_scale``; the latter is ``None`` where the
            expectation was taken at the mean.
        rate: gradient of KL(q_θ ‖ p) for both, or ``None`` where the posterior has no rate.
        variance: of the prior, ``[..., 1, D]``: its units.
        beta: weight of the rate.
        narrowest: of the prior's components, ``[..., 1, D]``, what bounds a stable step; ``None`` where it is ``variance``.
    """

    data: tuple[Tensor, Tensor | None]
    rate: tuple[Tensor, Tensor] | None
    variance: Tensor
    beta: Tensor | float
    narrowest: Tensor | None = None


class Rule(nn.Module):
    """Base class of update rules."""

    def forward(self, index: int, parameters: PosteriorParameters, pull: Pull) -> PosteriorParameters:
        """θ after step ``index`` (from 0); there may be more steps than were trained."""
        raise NotImplementedError

    def shrink(self, index: int, factor: float) -> None:
        """Make step ``index`` go ``factor`` times as far; with 0 it is the identity.

        A rule of fewer steps repeats its last one's numbers, which then change for all of them.
        """
        raise NotImplementedError

    def stand_still(self) -> None:
        """Make every step the identity: K steps are then none."""
        raise NotImplementedError


class Units(StrEnum):
    """What one step of size 1 along a gradient of 1 is, for the mean of a weight."""

    POSTERIOR = "posterior"
    """The posterior's own variance σ_q²: a natural gradient, which goes less far the more is known."""
    PRIOR = "prior"
    """The prior's variance σ_ψ²: the descent is in w = μ_ψ + σ_ψ u (the non-centred parameterisation)."""
    WEIGHTS = "weights"
    """1: the plain gradient."""


class GradientStep(Rule):
    """θ ← θ − η ∇θ, with one step size per step.

    ``units`` say in what the mean is moved. In the posterior's, loc ← loc − η σ_q² ∇, the step is the natural gradient's: a
    class with many support items, whose posterior is narrow, is moved less by the queries than one with few, and the same η
    serves both. Source: Amari 1998; Khan and Rue 2023, "The Bayesian learning rule", section 3.

    The step is bounded: η β never exceeds what would take the mean past the prior's, and half of 1 for the log standard
    deviation, and the standard deviation never jumps past the prior's; of a mixture its narrowest component counts, for that is
    how steep its rate can get. Beyond these bounds the rate's pull overshoots the prior, and K steps would end with a worse
    objective than none.

    Where the expectation over w was taken at the mean, the distortion says nothing about log σ: its pull is then a learned
    shift per step and dimension.

    Steps beyond the trained number have the last one's numbers and each goes half as far as the one before, so that all of them
    together go no further than one: what was trained to be good after K steps stays so after more.

    What :meth:`shrink` makes smaller is the step that is taken, after all bounds: a size far beyond them could be halved, and
    the step be the same.

    Args:
        steps: K.
        num_features: D.
        size: initial η.
        learned: learn one η per step, on the log scale.
        units: of the mean's step.
        per_feature: one η per step and dimension. Source: Li et al. 2017, Meta-SGD.
        point: the posterior is a point, whose scale stands still: there are no shifts to learn.
        decay: weight decay λ of the mean, whose gradient is ∇ + λ loc, as that of ``torch.optim.SGD``.

    Raises:
        ValueError: a ``size`` that is not positive.
    """

    log_size: Tensor
    share: Tensor

    def __init__(
        self,
        steps: int,
        num_features: int,
        *,
        size: float = 1e-3,
        learned: bool = False,
        units: Units | str = Units.WEIGHTS,
        per_feature: bool = False,
        point: bool = False,
        decay: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < size < float("inf"):
            raise ValueError(f"a step size must be positive, not {size}")
        self.units, self.decay = Units(units), decay
        shape = (max(steps, 1), num_features) if per_feature else (max(steps, 1),)
        declare(self, "log_size", torch.full(shape, float(size)).log(), learned=learned)
        self.scale_shift = None if point else nn.Parameter(torch.zeros(max(steps, 1), num_features))
        self.register_buffer("share", torch.ones(max(steps, 1)))  # of each step that is taken

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        state_dict.setdefault(f"{prefix}share", torch.ones_like(self.share))  # checkpoints of before: all of it
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def shrink(self, index: int, factor: float) -> None:
        self.share[index] *= factor

    @torch.no_grad()
    def stand_still(self) -> None:
        self.log_size.fill_(-torch.inf)
        if self.scale_shift is not None:
            self.scale_shift.zero_()

    def taken(self, index: int) -> tuple[int, Tensor]:
        """Which step's numbers step ``index`` has, and the share of it that is taken."""
        known, beyond = min(index, len(self.log_size) - 1), max(0, index + 1 - len(self.log_size))
        return known, self.share[known] * 0.5**beyond

    def unit(self, log_scale: Tensor, pull: Pull) -> Tensor | float:
        """What the mean's gradient is multiplied by beside η: ``[..., rows, D]``, ``[..., 1, D]`` or a number."""
        if self.units is Units.POSTERIOR:
            return (2 * log_scale).exp()
        return pull.variance if self.units is Units.PRIOR else 1.0

    def forward(self, index: int, parameters: PosteriorParameters, pull: Pull) -> PosteriorParameters:
        index, share = self.taken(index)
        size = self.log_size[index].exp()
        (loc, log_scale), (loc_gradient, log_scale_gradient) = parameters, pull.data
        loc_size, scale_size, rate_fall = size * self.unit(log_scale, pull), size, None
        if self.decay:
            loc_gradient = loc_gradient + self.decay * loc
        if pull.rate is not None and pull.beta:
            narrowest = pull.variance if pull.narrowest is None else pull.narrowest
            loc_size, scale_size = torch.minimum(loc_size, narrowest / pull.beta), size.clamp(max=0.5 / pull.beta)
            loc_gradient = loc_gradient + pull.beta * pull.rate[0]
            rate_fall = bounded_fall(scale_size * pull.beta * pull.rate[1], log_scale, narrowest)
        loc = loc - share * loc_size * loc_gradient
        if self.scale_shift is None:
            return PosteriorParameters(loc, log_scale)
        fall = self.scale_shift[index] if log_scale_gradient is None else scale_size * log_scale_gradient
        fall = fall if rate_fall is None else fall + rate_fall
        return PosteriorParameters(loc, log_scale - share * fall)


def bounded_fall(fall: Tensor, log_scale: Tensor, variance: Tensor) -> Tensor:
    """``fall``, what the rate takes off ``log_scale``, but no more than what lies above the prior's, the narrowest
    ``variance`` of which is given."""
    return torch.minimum(fall, (log_scale - 0.5 * variance.log()).clamp_min(0))
