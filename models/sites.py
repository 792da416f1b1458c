"""Sample statements as plain values: what a program says where nobody has to follow how it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
from torch import Tensor, nn


class Site(NamedTuple):
    """A sample statement.

    Attributes:
        distribution: as ``pyro.sample`` gets it.
        observed: its value, where that is known.
        scale: what its log-density is multiplied by, as by a plate's subsampling.
    """

    distribution: dist.TorchDistribution
    observed: Tensor | None = None
    scale: Tensor | float = 1.0


def says_its_sites(program: Any) -> bool:
    """Whether a program has ``sites`` that go with its ``forward``: of the same class, for a subclass that changes one alone
    says something else; without hooks on its call, and without random parts (``PyroSample``) in its modules."""
    if not isinstance(program, nn.Module) or program._forward_hooks or program._forward_pre_hooks:
        return False
    owner = next(kind for kind in type(program).__mro__ if "forward" in vars(kind))
    return "sites" in vars(owner) and not any(part.__dict__.get("_pyro_samples") for part in program.modules())
