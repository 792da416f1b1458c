"""Means over the steps of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class StepMeans:
    """Means over the steps of an epoch of what each says of itself. Lightning's own keep books on every number of every step,
    which takes a small model's step a millisecond or two."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """What a step says, ``values`` by name, 0-dimensional; names may be missing where it says nothing of them."""
        for name, value in values.items():
            total, steps = self.totals.get(name, (0.0, 0))
            exact = torch.promote_types(value.dtype, torch.float32)  # a sum in half precision stops growing
            self.totals[name] = total + value.detach().to(exact), steps + 1

    def take(self) -> dict[str, Tensor]:
        """The means so far; the next ones begin anew."""
        means = {name: total / steps for name, (total, steps) in self.totals.items()}
        self.totals.clear()
        return means


class LogMeans(Callback):
    """Logs the ``means`` of a module at the end of each epoch, over all processes."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Forget steps of an epoch that was broken off."""
        module.means.take()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        module.log_dict(module.means.take(), sync_dist=True)
