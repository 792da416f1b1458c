"""Sample statements as plain values: what a program says where nobody has to follow how it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

FROM_PRIOR = "from_prior"
"""What a guide's site has in its ``infer`` where it is drawn from the model's own prior: there is no rate to speak of."""


class Site(NamedTuple):
    """A sample statement.

    Attributes:
        distribution: as ``pyro.sample`` gets it.
        observed: its value, where that is known.
        scale: what its log-density is multiplied by, as by a plate's subsampling.
        plates: the batch shape that plates give it, from the left as far as known; ``()`` where another site says it.
    """

    distribution: dist.TorchDistribution
    observed: Tensor | None = None
    scale: Tensor | float = 1.0
    plates: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether its distribution has the batch shape of its plates, and what is observed the shape of a draw: Pyro would
        expand the one and refuse the other."""
        shape = self.distribution.shape()[len(self.distribution.batch_shape) - len(self.plates) :]
        if self.observed is not None and self.observed.shape != shape:
            return False
        return not self.plates or self.distribution.batch_shape[-len(self.plates) :] == self.plates


def says_its_sites(program: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a program has ``sites`` that go with its ``forward``, for a call with ``args`` and ``kwargs``.

    Both have to be of the same class, for a subclass that changes one alone says something else; and nothing else may be wound
    about its call: no hooks, no ``__call__`` or ``forward`` of its own, no random parts (``PyroSample``) in its modules. What
    depends on the arguments the program's own ``says_sites`` tells.
    """
    if not isinstance(program, nn.Module) or program._forward_hooks or program._forward_pre_hooks or "forward" in vars(program):
        return False
    owner: Any = next(kind for kind in type(program).__mro__ if "forward" in vars(kind))
    caller = next(kind for kind in type(program).__mro__ if "__call__" in vars(kind))
    if "sites" not in vars(owner) or caller not in (nn.Module, PyroModule):
        return False
    random = any(part.__dict__.get("_pyro_samples") for part in program.modules())
    return not random and owner.says_sites(program, *args, **kwargs)
