"""Categorical distributions whose logits lie in memory class by class, as predictors of few-shot tasks give them."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import lazy_property


class ClassByClass(dist.Categorical):
    """Categorical(softmax ``logits``): Pyro's own but for rounding, and for a share of its time on a CPU.

    Where the queries of a class lie side by side, torch's softmax over the dimension before the last takes many of them at a
    time, in one pass; the usual way is five passes along a dimension of few classes.

    Args:
        logits: ``[..., queries, classes]``, of any normalisation.
    """

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = self._param = logits.mT.log_softmax(-2).mT
        self._num_events = logits.shape[-1]
        torch.distributions.Distribution.__init__(self, logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> ClassByClass:
        return super().expand(batch_shape, ClassByClass.__new__(ClassByClass) if _instance is None else _instance)

    @lazy_property
    def probs(self) -> Tensor:
        """``[..., queries, classes]``."""
        return self.logits.exp()
