"""Training of the whole feature network through the guide: tasks of images, from the pre-trained network on."""

from __future__ import annotations

import copy
from dataclasses import replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.augmentation import LETTERS, PHOTOGRAPHS
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed, seeded
from inference.elbo import RateDistortionModule
from inference.meta.learner import build_objective
from inference.meta.mapping import feature_space
from inference.meta.methods import METHODS
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, MetaSchedule, TuningSettings, VariantSettings, settings
from inference.meta.tasks import Kinds, kinds, training_tasks
from inference.meta.training import MetaTraining
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors, save_tensors
from inference.runs.training import train
from inference.runs.updates import Augment
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace
from models.networks.layers import embed

FIRST, STAGE, LOSS = "tune-guide", "tune", "val/loss"
SLOWER = 0.2
"""Step sizes of map, prior and guide while the network is trained with them, in units of those that trained them first."""
WARPS = 2  # a stream of random numbers beside those of tasks and draws


class BatchNorm(StrEnum):
    """What batch norm uses while the network is trained on tasks."""

    RUNNING = "running"
    """The statistics of pre-training, kept as they are: an image's features do not depend on the others."""
    BATCH = "batch"
    """Those of all images of a step; running averages follow, and are used in evaluation."""


class ImageEmbedding(nn.Module):
    """Images to points of the feature space, ``[..., channels, height, width] -> [..., num_outputs]``, all in one pass.

    Args:
        network: images to features.
        space: the map of features.
        batch_norm: what batch norm uses in training mode.
    """

    def __init__(self, network: FeatureNetwork, space: FeatureSpace, batch_norm: BatchNorm | str = BatchNorm.RUNNING) -> None:
        super().__init__()
        self.network, self.space, self.batch_norm = network, space, BatchNorm(batch_norm)
        self.train()

    def train(self, mode: bool = True) -> ImageEmbedding:
        """Training mode, in which batch norm keeps its statistics where they are to stay."""
        super().train(mode)
        if self.batch_norm is BatchNorm.RUNNING:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images.flatten(0, -4)).unflatten(0, images.shape[:-3])
        with torch.autocast(features.device.type, enabled=False):  # a network may run in bf16, the map may not
            return self.space(features.to(self.space.directions.dtype))


class ImageTraining(MetaTraining):
    """:class:`~inference.meta.training.MetaTraining` on tasks of augmented images, which trains the network too.

    Args:
        objective: model, guide and objective.
        train: a sampler of tasks of images.
        validation: kinds of validation tasks of images.
        schedule: lengths, rates and the seed; ``feature_learning_rate`` is that of the map.
        embedding: network and map.
        network_learning_rate: step size of the network's own parameters.
        augmentation: of training images; ``None`` takes them as they are.
    """

    embedding: ImageEmbedding

    def __init__(
        self,
        objective: RateDistortionModule,
        train: Any,
        validation: Kinds,
        schedule: MetaSchedule,
        embedding: ImageEmbedding,
        *,
        network_learning_rate: float,
        augmentation: Augment | None = None,
    ) -> None:
        super().__init__(objective, train, validation, schedule, embedding)
        self.network_learning_rate, self.augmentation = network_learning_rate, augmentation

    def draw(self, tasks: int, seed: int) -> Any:
        """So many ``tasks``, their images augmented."""
        episode = super().draw(tasks, seed)
        if self.augmentation is None:
            return episode
        images = torch.cat([episode.support_x, episode.query_x], dim=1)
        warped = self.augmentation(images.flatten(0, 1).to(self.device), seed=mix_seed(seed, WARPS))
        support, query = warped.view_as(images).split([episode.support_x.shape[1], episode.query_x.shape[1]], dim=1)
        return episode._replace(support_x=support, query_x=query)

    def feature_groups(self) -> list[dict[str, Any]]:
        return [*super().feature_groups(), {"params": self.embedding.network.parameters(), "lr": self.network_learning_rate}]


def tune(network: FeatureNetwork, options: SibOptions, data: ImageSplits, run: RunFolder) -> None:
    """Train the network in place, through SIB's guide (of the first predictor and β), and put it in the run's place of the
    pre-trained one; or do nothing, where that has been done.

    Map, prior and guide are trained first (:func:`trained_guide`), and then together with the network. The network stays as it
    was where validation tasks cost no less afterwards. Map, prior and guide are left: every variant of the run is trained on
    the network's features from its own start.
    """
    if load_tensors(run.network)[1].get("tuned"):
        return
    how, schedule = settings(TuningSettings, options), settings(MetaSchedule, options)
    with run.timed(STAGE), seeded(options.seed):
        objective, space, before = trained_guide(network, options, data, run)
        pretrained = copy.deepcopy(network.state_dict())
        module = ImageTraining(
            objective,
            training_tasks(options, data.train),
            kinds(options, data.val, "val"),
            slower(replace(schedule, tasks=how.network_tasks, batch=how.network_batch)),
            ImageEmbedding(network, space, how.batch_norm),
            network_learning_rate=how.network_learning_rate,
            augmentation=PHOTOGRAPHS if data.mirror else LETTERS,
        )
        train(module, options.loop, run, STAGE, epochs=schedule.validations, monitor=LOSS, accumulate=how.accumulate)
        after = module.validate()[LOSS]
    if after >= before:
        print(f"the network stays as pre-trained: validation tasks cost {before:.2f} nats with it, {after:.2f} tuned")
        network.load_state_dict(pretrained)
    network.eval()
    save_tensors(run.network, network.state_dict(), {**network.description(), "tuned": True})


def trained_guide(
    network: FeatureNetwork, options: SibOptions, data: ImageSplits, run: RunFolder
) -> tuple[RateDistortionModule, FeatureSpace, float]:
    """Prior and guide in their objective, and the map of features, trained on the features of the ``network`` as it is, whose
    gradients would else be those of a guide that knows nothing; and what validation tasks cost with them, nats per task."""
    chosen, schedule = settings(GuideSettings, options), settings(MetaSchedule, options)
    variant = next(one for one in METHODS["sib"].variants(settings(VariantSettings, options)) if not one.reference)
    train_part, val_part = (
        LabelledItems(embed(network, part.items), part.labels, part.class_names) for part in (data.train, data.val)
    )
    space, means = feature_space(chosen, variant.predictor, train_part)
    objective = build_objective(chosen, variant, means)
    module = MetaTraining(objective, training_tasks(options, train_part), kinds(options, val_part, "val"), schedule, space)
    train(module, options.loop, run, FIRST, epochs=schedule.validations, monitor=LOSS)
    return objective, space, module.validate()[LOSS]


def slower(schedule: MetaSchedule) -> MetaSchedule:
    """The ``schedule`` for what was trained before."""
    rate, feature_rate = schedule.learning_rate, schedule.feature_learning_rate
    return replace(schedule, learning_rate=SLOWER * rate, feature_learning_rate=SLOWER * feature_rate)
