"""Training of a student beside its teacher, as one Lightning module for all methods."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data.items import LabelledItems
from inference.elbo import RateDistortion, RateDistortionModule
from inference.runs.updates import ORDER, UNLABELLED_ORDER, Augment, Schedule, UpdateTraining
from models.networks.layers import device_of, features


class DistillationTraining(UpdateTraining):
    """min L_S − Σ_k λ_k E log q(t_k given s_k), both expectations over minibatches.

    Where all items have labels, one batch serves both terms; otherwise labels come from batches of the labelled items and the
    teacher's layers from batches of all. The teacher sees the same augmented images as the student.

    Source: Ahn et al. 2019, equation 2.

    Args:
        objective: :class:`~models.distillation.model.DistillationModel` with an empty guide.
        teacher: in evaluation mode throughout, and no part of the checkpoint.
        labelled: items with labels; ``None`` trains on the teacher's layers alone.
        everything: all items, where not all have labels.
        schedule, augmentation, seed: see :class:`~inference.runs.updates.UpdateTraining`.
    """

    def __init__(
        self,
        objective: RateDistortionModule,
        teacher: nn.Module,
        labelled: LabelledItems | None,
        everything: LabelledItems | None = None,
        *,
        schedule: Schedule,
        augmentation: Augment | None,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule, augmentation=augmentation, seed=seed)
        self.objective = objective.to(memory_format=torch.channels_last)
        self.teacher = (teacher,)  # in a tuple: no submodule
        self.labelled, self.everything = labelled, everything

    def on_fit_start(self) -> None:
        self.home = device_of(self.teacher[0])
        self.teacher[0].to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def on_fit_end(self) -> None:
        self.teacher[0].to(self.home)

    def teacher_features(self, x: Tensor) -> dict[str, Tensor] | None:
        """The teacher's layers, where any are asked for."""
        layers = self.objective.model.teacher_layers
        return features(self.teacher[0], x, layers) if layers else None

    def batches(self, step: int) -> Iterator[tuple[float, Tensor, Tensor | None, dict[str, Tensor] | None]]:
        """(items per process, images, labels, teacher's layers) of a step: all at once, or labels and layers of separate
        images."""
        if self.labelled is not None:
            x, y = self.draw(self.labelled, step, ORDER)
            yield self.items_per_process(self.labelled), x, y, self.teacher_features(x) if self.everything is None else None
        if self.everything is not None and self.objective.model.pairs:
            x, _ = self.draw(self.everything, step, UNLABELLED_ORDER)
            yield self.items_per_process(self.everything), x, None, self.teacher_features(x)

    def losses(self, step: int, values: dict[str, Tensor]) -> list[Tensor]:
        return [self.mean_loss(self.objective.terms(*batch), count, values) for count, *batch in self.batches(step)]

    def mean_loss(self, terms: RateDistortion, count: float, values: dict[str, Tensor]) -> Tensor:
        """Loss per item, of ``count``; adds each site's −log-density (nats per item, without its λ) to ``values``."""
        weights = {pair.site: pair.weight for pair in self.objective.model.pairs}
        for site, total in terms.distortions.items():
            values[f"train/{site}"] = total.detach() / (count * weights.get(site, 1.0))
        return terms.loss / count
