"""Draws in pairs on both sides of their mean, which share what is linear in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Mirrored(NamedTuple):
    """Weights mean + deviation, of all pairs, and then mean − deviation, which nobody has written out: what is linear in them
    is half the work. For where no gradient is asked for.

    Attributes:
        mean: ``[..., rows, D]``.
        deviation: ``[pairs, ..., rows, D]``.
    """

    mean: Tensor
    deviation: Tensor

    def squeeze(self, dim: int) -> Mirrored:
        """Without the dimension ``dim``, counted from the right, of size 1."""
        return Mirrored(self.mean.squeeze(dim), self.deviation.squeeze(dim))

    def written(self) -> Tensor:
        """All draws, ``[2 · pairs, ..., rows, D]``."""
        return self.each(lambda part: part)

    def each(self, linear: Callable[[Tensor], Tensor]) -> Tensor:
        """A ``linear`` function of each draw, ``[2 · pairs, ...]``, from those of means and deviations."""
        mean, deviation = linear(self.mean), linear(self.deviation)
        both = deviation.new_empty((2, *deviation.shape))
        for side, sign in zip(both, (1, -1), strict=True):
            torch.add(mean, deviation, alpha=sign, out=side)
        return both.flatten(0, 1)

    def squares(self) -> Tensor:
        """‖w‖² of the rows of each draw, ``[2 · pairs, ..., rows]``: ‖mean‖² + ‖deviation‖² ± 2 ⟨mean, deviation⟩."""
        mean, deviation = self
        along = 2 * torch.linalg.vecdot(mean, deviation)
        whole = torch.linalg.vecdot(mean, mean) + torch.linalg.vecdot(deviation, deviation)
        return torch.cat([whole + along, whole - along])
