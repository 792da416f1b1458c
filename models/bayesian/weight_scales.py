"""One scale per weight, shared within groups: the unit that a prior, and the posterior's parameters, are measured in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn


class PriorScales(StrEnum):
    """Which scales a prior over weights has. Learned ones maximise the ELBO: empirical Bayes."""

    LAYER = "layer"
    """One per parameter tensor, learned."""
    INPUT = "input"
    """One per input unit or channel of each parameter tensor, learned: units that are not needed fall silent."""
    FAN_IN = "fan-in"
    """1/√fan-in, not learned."""
    FIXED = "fixed"
    """One for all weights, not learned."""

    @property
    def learned(self) -> bool:
        """Whether the training data choose them."""
        return self in (PriorScales.LAYER, PriorScales.INPUT)


class WeightScales(nn.Module):
    """log s of all weights of a network, ``[P]``; the same within a group.

    Where they are learned, ``log_scale`` is a parameter, else a buffer: ``[groups]``. They are 1/√fan-in, as the weights of an
    untrained network are; learned ones start there. Each of ``posteriors`` that train side by side learns its own, as if it
    trained alone: ``[K, groups]``. Had they one prior in common, they would silence the same units, and agree where networks
    that were trained apart do not.

    Args:
        shapes: parameter name -> shape, in the order of the weight vector.
        kind: which weights share a scale, and whether it is learned; not ``FIXED``, which has no scales but the prior's own.
        posteriors: K.
    """

    log_scale: Tensor

    def __init__(self, shapes: Mapping[str, Sequence[int]], kind: PriorScales, posteriors: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.shapes = [tuple(shape) for shape in shapes.values()]
        self.groups = [group_shape(shape, kind) for shape in self.shapes]
        fans = zip(self.groups, fan_in(shapes).values(), strict=True)
        parts = [torch.full(group, -0.5 * math.log(fan)) for group, fan in fans]
        start = torch.cat([part.flatten() for part in parts])
        if kind.learned:
            self.log_scale = nn.Parameter(start if posteriors == 1 else start.repeat(posteriors, 1))
        else:
            self.register_buffer("log_scale", start, persistent=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """``()``, or ``(K, 1)`` where each posterior has its own."""
        return () if self.log_scale.dim() == 1 else (len(self.log_scale), 1)

    def forward(self) -> Tensor:
        """log s, differentiable: ``[P]``, or ``[K, 1, P]`` against the plates ``posteriors`` × ``data``."""
        own = self.batch_shape
        parts = self.log_scale.split([math.prod(group) for group in self.groups], dim=-1)
        grouped = zip(parts, self.groups, self.shapes, strict=True)
        return torch.cat([part.view(*own, *group).expand(*own, *shape).flatten(len(own)) for part, group, shape in grouped], -1)

    def rows(self) -> Tensor:
        """log s to be broadcast against ``[K, P]``: ``[P]`` or ``[K, P]``."""
        return self().squeeze(-2) if self.batch_shape else self()

    @torch.no_grad()
    def hold(self, posterior: int) -> None:
        """Become the scales of one posterior, ``[groups]``, not learned any more."""
        log_scale = self.log_scale[posterior] if self.batch_shape else self.log_scale
        del self.log_scale
        self.register_buffer("log_scale", log_scale.clone())

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        """Scales that all posteriors shared, as earlier versions had them, become those of each."""
        stored = state_dict.get(f"{prefix}log_scale")
        if stored is not None and stored.dim() < self.log_scale.dim():
            state_dict[f"{prefix}log_scale"] = stored.expand_as(self.log_scale)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def group_shape(shape: tuple[int, ...], kind: PriorScales) -> tuple[int, ...]:
    """Of a parameter's scales, to be broadcast against its ``shape``."""
    if kind is PriorScales.INPUT and len(shape) > 1:
        return (1, shape[1], *(1 for _ in shape[2:]))
    return tuple(1 for _ in shape)


def fan_in(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """How many inputs each output of a parameter's layer adds up, by the parameter's name; ``shapes``
    are those of all parameters.

    Of a bias those of its weight, ``name.bias`` and ``name.weight``; 1 of any other parameter without a matrix, such as the
    gain of a normalisation.
    """

    def inputs(name: str) -> int:
        shape = shapes[name]
        partner = f"{name.removesuffix('bias')}weight"
        if len(shape) < 2 and name.split(".")[-1] == "bias" and partner in shapes:
            shape = shapes[partner]
        return math.prod(shape[1:]) if len(shape) > 1 else 1

    return {name: inputs(name) for name in shapes}
