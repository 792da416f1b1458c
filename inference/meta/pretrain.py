"""Pre-training of the feature network: cosine classification of the base classes, watched by few-shot accuracy."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.augmentation import LETTERS, PHOTOGRAPHS
from data.episodes import EpisodeSampler, TaskSpec
from data.gather import gather
from data.items import ImageSplits, LabelledItems
from inference.runs.classifier import ClassifierTraining
from inference.runs.processes import together
from inference.runs.tensors import AT_ONCE
from inference.runs.updates import Schedule
from models.distillation.losses import knowledge_distillation
from models.networks.backbones import CosineClassifier
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import class_means
from models.networks.layers import embed

WATCHED = "val/accuracy"
"""The logged scalar that chooses a checkpoint: few-shot accuracy on validation classes."""
LEARNING_RATE = 0.003
"""Largest step size of AdamW from scratch."""
FINE_TUNING = 0.1
"""Times which, from given weights."""
TAUGHT_WEIGHT = 0.5
"""Weight of the teacher's answers; labels have the rest."""


class FeatureTraining(ClassifierTraining):
    """min (1 − t) · CE(labels) + t · KD(teacher), nats per item, t = ½, or 0 where there is no teacher.

    A teacher is a trained network of the same kind, of which this one is born again. Source: Furlanello et al. 2018, section
    3.1, with :func:`~models.distillation.losses.knowledge_distillation`.

    Args:
        network: trained in place; from images to features.
        items: images with labels.
        schedule: steps, batch and rates.
        head: from features to logits.
        teacher: from images to logits, left as it is, and no part of the checkpoint; ``None`` trains on labels alone.
        options: of :class:`~inference.runs.classifier.ClassifierTraining`.
    """

    def __init__(
        self,
        network: nn.Module,
        items: LabelledItems,
        schedule: Schedule,
        *,
        head: nn.Module,
        teacher: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, items, schedule, head=head, **options)
        self.teacher = (teacher,)  # in a tuple: no submodule

    def on_fit_start(self) -> None:
        if (teacher := self.teacher[0]) is not None:
            ours = next(self.network.parameters())
            teacher.to(ours.device, ours.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses(self, step: int, values: dict[str, Tensor]) -> list[Tensor]:
        x, y = self.draw(self.items, step)
        share, (teacher,) = self.items_per_process(self.items), self.teacher
        logits = widened(self.head(self.network(x)))
        labels = -self.likelihood(logits).log_prob(y).sum() / share
        values["train/labels"] = labels.detach()
        if teacher is None:
            return [labels]
        with torch.no_grad():
            answers = widened(teacher(x))
        taught = knowledge_distillation(logits, answers).sum() / share
        values["train/teacher"] = taught.detach()
        return [(1 - TAUGHT_WEIGHT) * labels, TAUGHT_WEIGHT * taught]

    def frozen(self) -> nn.Module:
        """A copy of what is trained, from images to logits, in evaluation mode: the next generation's teacher."""
        network = copy.deepcopy(self.network)
        if isinstance(network, FeatureNetwork):
            network.mirror = False  # the same image as the student's
        return nn.Sequential(network, copy.deepcopy(self.head)).requires_grad_(False).eval()


def widened(logits: Tensor) -> Tensor:
    """Logits of single precision at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pretraining(
    network: FeatureNetwork,
    data: ImageSplits,
    *,
    epochs: int,
    batch: int = 64,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float = 0.05,
    teacher: nn.Module | None = None,
    seed: int = 0,
    tasks_seed: int = 0,
) -> FeatureTraining:
    """Cosine classification of the base classes ``data.train``, taught by a teacher where there is one.

    After every epoch ``val/accuracy`` is the nearest-class-mean accuracy on tasks of the validation classes ``data.val``.

    Args:
        network: trained in place.
        epochs, batch, learning_rate, weight_decay: of AdamW under a one-cycle schedule.
        teacher: see :class:`FeatureTraining`; a trained one's :meth:`~FeatureTraining.frozen` is one.
        seed: order and augmentation.
        tasks_seed: validation tasks.
    """
    updates = epochs * max(1, len(data.train) // batch)
    schedule = Schedule(updates, batch, learning_rate, weight_decay, rounds=epochs)
    spec = TaskSpec(way=min(5, data.val.num_classes), queries=min(15, int(data.val.counts.min()) - 1))
    validation = EpisodeSampler(data.val, spec, split="validation")
    return FeatureTraining(
        network,
        data.train,
        schedule,
        head=CosineClassifier(network.num_features, data.train.num_classes),
        teacher=teacher,
        validate=partial(few_shot_accuracy, network, validation, seed=tasks_seed),
        augmentation=PHOTOGRAPHS if data.mirror else LETTERS,
        seed=seed,
    )


def few_shot_accuracy(network: nn.Module, sampler: EpisodeSampler, *, seed: int, tasks: int = 200) -> dict[str, float]:
    """``val/accuracy``: what the features are worth without learning, on so many ``tasks``; a fraction."""
    return {WATCHED: nearest_mean_accuracy(network, sampler, tasks=tasks, seed=seed)}


def nearest_mean_accuracy(network: nn.Module, sampler: EpisodeSampler, *, tasks: int, seed: int) -> float:
    """Accuracy (fraction) of the nearest-class-mean cosine classifier on tasks of images, which the processes that train
    embed together."""
    source = sampler.source
    features = together(lambda some: embed(network, source.items[some]), len(source))
    normalised = gather(F.normalize(some, dim=-1) for some in features.split(AT_ONCE))
    bank = LabelledItems(normalised, source.labels, source.class_names)
    episode = EpisodeSampler(bank, sampler.spec).sample(tasks, seed=seed)
    means = F.normalize(class_means(episode.support_x, episode.support_y, sampler.spec.way), dim=-1)
    assert episode.query_y is not None
    correct = torch.eq((episode.query_x @ means.mT).argmax(-1), episode.query_y)
    return float(correct.float().mean())
