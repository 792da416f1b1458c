"""Means over the steps of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics.aggregation import MeanMetric


class StepMeans:
    """Means over the steps of an epoch of what each says of itself. ``LightningModule.log`` keeps them too, and more: its books
    take a small model's step a millisecond or two."""

    def __init__(self) -> None:
        self.metrics: dict[str, MeanMetric] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """What a step says, ``values`` by name, 0-dimensional; names may be missing where it says nothing of them."""
        for name, value in values.items():
            if name not in self.metrics:
                self.metrics[name] = MeanMetric(nan_strategy="disable", sync_on_compute=False).to(value.device)
            self.metrics[name].update(value)

    def take(self) -> dict[str, Tensor]:
        """The means so far, in single precision; the next ones begin anew."""
        means = {name: metric.compute() for name, metric in self.metrics.items()}
        self.metrics.clear()
        return means


class LogMeans(Callback):
    """Logs the ``means`` of a module at the end of each epoch, over all processes."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Forget steps of an epoch that was broken off."""
        module.means.take()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        module.log_dict(module.means.take(), sync_dist=True)
