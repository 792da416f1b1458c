"""Training of a student, with or without a teacher, as one Lightning module for all methods; teachers train by it too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.augmentation import Augmentation
from data.items import LabelledItems
from data.seeding import mix_seed
from inference.elbo import RateDistortion, RateDistortionModule
from inference.runs.training import stop_if_not_finite
from models.networks.layers import device_of, features

ORDER, UNLABELLED_ORDER, WARPS = 0, 1, 2  # streams of random numbers
EPOCHS = 30  # the run is logged and saved this often


class DistillationTraining(lightning.LightningModule):
    """min L_S − Σ_k λ_k E log q(t_k given s_k), both expectations over minibatches.

    Where all items have labels, one batch serves both terms; otherwise labels come from batches of the labelled items and the
    teacher's layers from batches of all. The teacher sees the same augmented images as the student.

    Source: Ahn et al. 2019, equation 2.

    Args:
        objective: :class:`~models.distillation.model.DistillationModel` with an empty guide.
        teacher: in evaluation mode throughout, and no part of the checkpoint.
        labelled: items with labels; ``None`` trains on the teacher's layers alone.
        everything: all items, where not all have labels.
        updates: optimiser steps.
        batch, learning_rate, weight_decay: of AdamW with one cycle.
        augmentation: of images; ``None`` takes them as they are.
        seed: order and augmentation.
    """

    def __init__(
        self,
        objective: RateDistortionModule,
        teacher: nn.Module,
        labelled: LabelledItems | None,
        everything: LabelledItems | None = None,
        *,
        updates: int,
        batch: int,
        learning_rate: float,
        weight_decay: float,
        augmentation: Augmentation | None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.objective = objective.to(memory_format=torch.channels_last)
        self.teacher = (teacher,)  # in a tuple: no submodule
        self.labelled, self.everything = labelled, everything
        self.updates, self.learning_rate, self.weight_decay = updates, learning_rate, weight_decay
        self.batch, self.augmentation, self.seed = batch, augmentation, seed
        self.steps_an_epoch = max(1, updates // EPOCHS)

    @property
    def epochs(self) -> int:
        """Lightning's epochs: rounds of ``steps_an_epoch`` updates; at least ``updates`` in all."""
        return -(-self.updates // self.steps_an_epoch)

    def train_dataloader(self) -> DataLoader:
        """Batch numbers alone: items are taken in :meth:`training_step`, where a resumed run knows its epoch for certain."""
        return DataLoader(torch.arange(self.steps_an_epoch), batch_size=None)  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        self.home = device_of(self.teacher[0])
        self.teacher[0].to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def on_fit_end(self) -> None:
        self.teacher[0].to(self.home)

    def draw(self, source: LabelledItems, step: int, stream: int) -> tuple[Tensor, Tensor]:
        """The ``step``-th batch of passes over ``source``, each in an order of its own; augmented, on the device."""
        batch = min(self.batch, len(source))
        number, place = divmod(step, len(source) // batch)
        generator = torch.Generator().manual_seed(mix_seed(self.seed, number, stream))
        chosen = torch.randperm(len(source), generator=generator)[place * batch : (place + 1) * batch]
        x, y = source.items[chosen].to(self.device), source.labels[chosen].to(self.device)
        if self.augmentation is not None:
            x = self.augmentation(x, seed=mix_seed(self.seed, step, stream, WARPS))
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, y

    def teacher_features(self, x: Tensor) -> dict[str, Tensor] | None:
        """The teacher's layers, where any are asked for."""
        layers = self.objective.model.teacher_layers
        return features(self.teacher[0], x, layers) if layers else None

    def batches(self, step: int) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Tensor] | None]]:
        """(images, labels, teacher's layers) of a step: all at once, or labels and layers of separate images."""
        if self.labelled is not None:
            x, y = self.draw(self.labelled, step, ORDER)
            yield x, y, self.teacher_features(x) if self.everything is None else None
        if self.everything is not None and self.objective.model.pairs:
            x, _ = self.draw(self.everything, step, UNLABELLED_ORDER)
            yield x, None, self.teacher_features(x)

    def training_step(self, number: int, index: int) -> Tensor:
        step = (self.current_epoch * self.steps_an_epoch + index) * self.trainer.world_size + self.global_rank
        values: dict[str, Tensor] = {}
        with stop_if_not_finite(self.global_step):
            losses = [self.mean_loss(self.objective.terms(*batch), len(batch[0]), values) for batch in self.batches(step)]
            loss = torch.stack(losses).sum()
            if not torch.isfinite(loss):
                raise FloatingPointError
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def mean_loss(self, terms: RateDistortion, count: int, values: dict[str, Tensor]) -> Tensor:
        """Loss an item; adds each site's −log-density (nats an item, without its λ) to ``values``."""
        weights = {pair.site: pair.weight for pair in self.objective.model.pairs}
        for site, total in terms.distortions.items():
            values[f"train/{site}"] = total.detach() / (count * weights.get(site, 1.0))
        return terms.loss / count

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [  # weights alone decay, not biases, norms and decoders' variances
            {"params": [p for p in trained if p.squeeze().dim() > 1]},
            {"params": [p for p in trained if p.squeeze().dim() <= 1], "weight_decay": 0.0},
        ]
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
        optimizer = torch.optim.AdamW(groups, self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        steps = self.epochs * self.steps_an_epoch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=max(steps, 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
