"""Pre-training of the feature network: cosine classification of the base classes, watched by few-shot accuracy."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from data.augmentation import LETTERS, PHOTOGRAPHS
from data.episodes import EpisodeSampler, TaskSpec
from data.items import ImageSplits, LabelledItems
from inference.runs.classifier import ClassifierTraining
from inference.runs.updates import Schedule
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


def pretraining(
    network: FeatureNetwork,
    data: ImageSplits,
    *,
    epochs: int,
    batch: int = 64,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> ClassifierTraining:
    """Cross-entropy of a cosine classifier over the base classes ``data.train``.

    After every epoch ``val/accuracy`` is the nearest-class-mean accuracy on tasks of the validation classes ``data.val``.

    Args:
        network: trained in place.
        epochs, batch, learning_rate, weight_decay: of AdamW under a one-cycle schedule.
        seed: order, augmentation and validation tasks.
    """
    updates = epochs * max(1, len(data.train) // batch)
    schedule = Schedule(updates, batch, learning_rate, weight_decay, rounds=epochs)
    spec = TaskSpec(way=min(5, data.val.num_classes), queries=min(15, int(data.val.counts.min()) - 1))
    validation = EpisodeSampler(data.val, spec, split="validation")
    return ClassifierTraining(
        network,
        data.train,
        schedule,
        head=CosineClassifier(network.num_features, data.train.num_classes),
        validate=partial(few_shot_accuracy, network, validation, seed=seed),
        augmentation=PHOTOGRAPHS if data.mirror else LETTERS,
        seed=seed,
    )


def few_shot_accuracy(network: nn.Module, sampler: EpisodeSampler, *, seed: int, tasks: int = 200) -> dict[str, float]:
    """``val/accuracy``: what the features are worth without learning, on so many ``tasks``; a fraction."""
    return {WATCHED: nearest_mean_accuracy(network, sampler, tasks=tasks, seed=seed)}


def nearest_mean_accuracy(network: nn.Module, sampler: EpisodeSampler, *, tasks: int, seed: int) -> float:
    """Accuracy (fraction) of the nearest-class-mean cosine classifier on tasks of images."""
    source = sampler.source
    bank = LabelledItems(F.normalize(embed(network, source.items), dim=-1), source.labels, source.class_names)
    episode = EpisodeSampler(bank, sampler.spec).sample(tasks, seed=seed)
    means = F.normalize(class_means(episode.support_x, episode.support_y, sampler.spec.way), dim=-1)
    assert episode.query_y is not None
    correct = torch.eq((episode.query_x @ means.mT).argmax(-1), episode.query_y)
    return float(correct.float().mean())
