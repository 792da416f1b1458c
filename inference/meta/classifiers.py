"""The ordinary classifier behind zero-shot tasks: trained on labelled domains, and read on new ones without or with batch norm
of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.augmentation import LETTERS
from data.episodes import Episode
from data.items import LabelledItems
from inference.evaluation.metrics import Scores, score
from inference.meta.pretrain import LEARNING_RATE, WATCHED
from inference.runs.classifier import ClassifierTraining
from inference.runs.updates import Schedule
from models.networks.backbones import CosineClassifier
from models.networks.batch_norm import normed_by_tasks
from models.networks.feature_network import FeatureNetwork
from models.networks.layers import device_of, evaluating

SHARES = (0.1, 0.3, 1.0)
"""Of a domain's own statistics in batch norm; validation domains choose one."""
ITEMS_AT_ONCE = 256


@dataclass(frozen=True)
class DomainClassifier:
    """A feature network with the cosine classifier it was trained with.

    Attributes:
        network: f.
        head: from its features to logits.
    """

    network: FeatureNetwork
    head: CosineClassifier

    @torch.no_grad()
    def probabilities(self, images: Tensor, *, share: float = 0.0) -> Tensor:
        """Class probabilities of tasks of images ``[tasks, n, channels, height, width]``: ``[tasks, n, classes]``, on the CPU.

        Args:
            share: of each task's own statistics in batch norm.
        """
        return torch.cat(list(self._parts(images, share)))

    def _parts(self, images: Tensor, share: float) -> Iterator[Tensor]:
        for tasks in images.split(max(1, ITEMS_AT_ONCE // images.shape[1])):
            with evaluating(self.network), normed_by_tasks(self.network, len(tasks), share):
                features = self.network(tasks.flatten(0, 1).to(device_of(self.network)))
            yield self._read(features).unflatten(0, tasks.shape[:2])

    def _read(self, features: Tensor) -> Tensor:
        return self.head(features.to(self.head.weight)).softmax(-1).cpu()

    @torch.no_grad()
    def scores(self, tasks: Episode, *, share: float = 0.0) -> Scores:
        """Of ``tasks`` with labels, of images or, where ``share`` is 0, of their features; ``share`` as in
        :meth:`probabilities`."""
        given, labels = tasks.query_x, tasks.query_y
        assert labels is not None
        embedded = given.is_floating_point() and given.dim() == 3
        probabilities = self._read(given) if embedded else self.probabilities(given, share=share)
        true = probabilities.gather(-1, labels[..., None])[..., 0]
        distortion = -true.clamp_min(torch.finfo(true.dtype).tiny).log().sum(-1)
        return score(probabilities, labels, rate=None, distortion=distortion)

    def best_share(self, validation: Episode) -> float:
        """The share of a domain's own statistics with the lowest NLL on ``validation`` tasks; above 0, for that is the network
        as it is."""
        return min(SHARES, key=lambda share: self.scores(validation, share=share).nll)


def classifier_training(
    classifier: DomainClassifier, items: LabelledItems, validation: Episode, *, epochs: int, batch: int = 64, seed: int = 0
) -> ClassifierTraining:
    """Cross-entropy of the classifier over labelled ``items``; after every epoch ``val/accuracy`` is that on ``validation``
    tasks, of domains never seen.

    Args:
        classifier: trained in place.
        epochs, batch: of AdamW under a one-cycle schedule.
        seed: order and augmentation.
    """
    updates = epochs * max(1, len(items) // batch)
    return ClassifierTraining(
        classifier.network,
        items,
        Schedule(updates, batch, LEARNING_RATE, 0.05, rounds=epochs),
        head=classifier.head,
        validate=partial(watched, classifier, validation),
        augmentation=LETTERS,
        seed=seed,
    )


def watched(classifier: DomainClassifier, validation: Episode) -> dict[str, float]:
    """``val/accuracy``, a fraction."""
    return {WATCHED: classifier.scores(validation).accuracy}
