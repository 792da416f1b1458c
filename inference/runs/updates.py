"""Training counted in updates, whatever the number of items: batches, optimiser, and the watch on the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.items import LabelledItems
from data.seeding import mix_seed, part_of_batch
from inference.runs.means import StepMeans
from models.parameters import fusable

ORDER, UNLABELLED_ORDER, WARPS = 0, 1, 2  # streams of random numbers
ROUNDS = 30

Augment = Callable[..., Tensor]
"""``augment(images, seed=...)``, such as :data:`data.augmentation.CROPS`."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network trains.

    Attributes:
        updates: optimiser steps.
        batch: items per step, over all processes.
        learning_rate: the largest, of AdamW with one cycle.
        weight_decay: of AdamW, for weights alone.
        rounds: how often the run is logged, validated and saved.
    """

    updates: int
    batch: int
    learning_rate: float
    weight_decay: float
    rounds: int = ROUNDS


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A ``tensor`` of the CPU's on a ``device``; a GPU copies it while the next one is read, for it is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class UpdateTraining(lightning.LightningModule):
    """A given number of AdamW steps under a one-cycle schedule; subclasses say what the losses of a step are.

    A resumed run draws the batches that an unbroken one would have drawn, for they depend on the step's number alone. Several
    processes share each batch, so that they train on what one process would have trained on.

    Args:
        schedule: steps, batch and rates.
        augmentation: of images; ``None`` takes items as they are.
        seed: order and augmentation.
    """

    def __init__(self, schedule: Schedule, *, augmentation: Augment | None = None, seed: int = 0) -> None:
        super().__init__()
        self.schedule, self.augmentation, self.seed = schedule, augmentation, seed
        self.means = StepMeans()
        self.steps_per_round = max(1, schedule.updates // schedule.rounds)
        self.orders: dict[int, tuple[int, Tensor]] = {}  # stream -> a pass, and its order

    def losses(self, step: int, values: dict[str, Tensor]) -> list[Tensor]:
        """The terms of a step's loss, each a sum over this process's items by :meth:`items_per_process`; scalars to log are put
        into ``values``."""
        raise NotImplementedError

    @property
    def epochs(self) -> int:
        """Lightning's epochs: rounds of ``steps_per_round`` updates; at least ``updates`` in all."""
        return -(-self.schedule.updates // self.steps_per_round)

    def train_dataloader(self) -> DataLoader:
        """Batch numbers alone: items are taken in :meth:`training_step`, where a resumed run knows its round for certain."""
        return DataLoader(torch.arange(self.steps_per_round), batch_size=None)  # type: ignore[arg-type]

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.trainer.world_size if self._trainer is not None else 1

    def items_per_process(self, source: LabelledItems) -> float:
        """A process's share of a batch from ``source``, on average: gradients are averaged over processes."""
        return min(self.schedule.batch, len(source)) / self.processes

    def draw(self, source: LabelledItems, step: int, stream: int = ORDER) -> tuple[Tensor, Tensor]:
        """This process's part of the ``step``-th batch of passes over ``source``, each pass in an order of its own, that of
        the ``stream``; augmented,
        on the device. Nothing but this part is read."""
        batch = min(self.schedule.batch, len(source))
        number, place = divmod(step, len(source) // batch)
        rows = slice(batch * self.global_rank // self.processes, batch * (self.global_rank + 1) // self.processes)
        chosen = self.order(len(source), number, stream)[place * batch : (place + 1) * batch][rows]
        x, y = (to_device(part[chosen], self.device) for part in (source.items, source.labels))
        if self.augmentation is not None:
            with part_of_batch(rows, batch):
                x = self.augmentation(x, seed=mix_seed(self.seed, step, stream, WARPS))
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, y

    def order(self, items: int, number: int, stream: int) -> Tensor:
        """The order of so many ``items`` in a pass by its ``number``, drawn once for each pass of a ``stream``."""
        if stream not in self.orders or (known := self.orders[stream])[0] != number or len(known[1]) != items:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, number, stream))
            self.orders[stream] = number, torch.randperm(items, generator=generator)
        return self.orders[stream][1]

    def training_step(self, number: int, index: int) -> Tensor:
        """The sum of the losses of a batch of items, of which this process has its part."""
        values: dict[str, Tensor] = {}
        loss = torch.stack(self.losses(self.current_epoch * self.steps_per_round + index, values)).sum()
        self.means.add(values)
        return loss

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [  # weights alone decay, not biases, norms and decoders' variances
            {"params": [p for p in trained if p.squeeze().dim() > 1]},
            {"params": [p for p in trained if p.squeeze().dim() <= 1], "weight_decay": 0.0},
        ]
        rate = self.schedule.learning_rate
        optimizer = torch.optim.AdamW(groups, rate, weight_decay=self.schedule.weight_decay, fused=fusable(trained))
        steps = self.epochs * self.steps_per_round
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
