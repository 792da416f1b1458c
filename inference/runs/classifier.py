"""Ordinary classifiers: teachers, and any network that is trained on labels before something else begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from data.items import LabelledItems
from data.seeding import seeded
from inference.runs.checks import check_items
from inference.runs.folder import RunFolder
from inference.runs.training import Loop, train
from inference.runs.updates import Augment, Schedule, UpdateTraining
from models.likelihoods import CategoricalLikelihood


class ClassifierTraining(UpdateTraining):
    """min −E log p(y given x), the mean over minibatches, nats per item.

    Args:
        network: trained in place.
        items: with labels.
        schedule: steps, batch and rates.
        head: from the network's features to logits, such as :class:`~models.networks.backbones.CosineClassifier`; trained
            beside it, and no part of it. ``None``: the network gives logits.
        validate: called after every round; its scalars are logged by their names, for ``train(..., monitor=...)``.
        augmentation, seed: see :class:`~inference.runs.updates.UpdateTraining`.
    """

    def __init__(
        self,
        network: nn.Module,
        items: LabelledItems,
        schedule: Schedule,
        *,
        head: nn.Module | None = None,
        validate: Callable[[], Mapping[str, float]] | None = None,
        augmentation: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule, augmentation=augmentation, seed=seed)
        self.network = network.to(memory_format=torch.channels_last)
        self.head = head if head is not None else nn.Identity()
        self.items, self.validate, self.likelihood = items, validate, CategoricalLikelihood()

    def losses(self, step: int, values: dict[str, Tensor]) -> list[Tensor]:
        x, y = self.draw(self.items, step)
        loss = -self.likelihood(self.head(self.network(x))).log_prob(y).sum() / self.items_per_process(self.items)
        values["train/labels"] = loss.detach()
        return [loss]

    def on_train_epoch_end(self) -> None:
        if self.validate is not None:
            self.log_dict(dict(self.validate()), prog_bar=True, sync_dist=True)


def train_classifier(
    network: nn.Module,
    items: LabelledItems,
    schedule: Schedule,
    loop: Loop,
    run: RunFolder,
    stage: str,
    *,
    augmentation: Augment | None = None,
    seed: int = 0,
) -> None:
    """Train ``network`` in place, as one stage of ``run``; it is left in evaluation mode.

    Raises:
        UserError: items the network cannot take, labels it has no output for, or a loss that is not finite.
    """
    check_items(network, items, classes=True)
    module = ClassifierTraining(network, items, schedule, augmentation=augmentation, seed=seed)
    with run.timed(stage), seeded(seed):
        train(module, loop, run, stage, epochs=module.epochs)
    network.eval()
