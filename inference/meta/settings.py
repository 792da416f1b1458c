"""What each stage of a run needs to know, and nothing more."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from data.errors import UserError
from models.networks.feature_space import FeatureSpace, RawSpace

Settings = TypeVar("Settings")
NETWORK = "network"
"""The predictor of methods that adapt a whole network: their items are images."""


@dataclass(frozen=True)
class PretrainSettings:
    """How features are learned.

    Args:
        backbone: a name of :func:`~models.networks.backbones.build_backbone`.
        epochs: passes over the base classes' images; 0 keeps the network as it starts.
        weights: to start from: a file, or a name: see :meth:`~models.networks.feature_network.FeatureNetwork.pretrained`.
        holdout: images of each base class kept out.
        seed: of the network's start, order and augmentation.
        generations: networks trained one after another, ``epochs`` each, every one but the first taught by the one before.
    """

    backbone: str
    epochs: int
    weights: str | None
    holdout: int
    seed: int
    generations: int = 1


@dataclass(frozen=True)
class VariantSettings:
    """What a run sweeps over.

    Args:
        predictor: names.
        posterior: family of a task's posterior.
        beta: weights of the rate.
        steps: K.
        given: options of the method itself, as its name has them behind it, see :mod:`inference.meta.choices`.
    """

    predictor: tuple[str, ...] = ("distance",)
    posterior: str = "gaussian"
    beta: tuple[float, ...] = (0.1, 1.0)
    steps: int = 3
    given: str = ""


@dataclass(frozen=True)
class GuideSettings:
    """How a model and its guide are built.

    Args:
        prior, initialisation, gradient: names, as in the command's options.
        rank: discriminant directions; ``None`` chooses by the predictor.
        inner_lr, learn_inner_lr, units, inner_samples: of the inner steps.
        way: classes per task, for parts that are built for one number of them.
        tasks: N, training tasks in all.
        seed: of what starts at random.
        gate: whether a learned gate holds the start back towards the prior; checkpoints of versions before 0.3 have none.
        counted: whether the start knows how many items a class has, and the steps how many queries, and what a class's items
            draw it to; in checkpoints of versions before 0.5 they do not.
        power, train_features: of the feature space, see :class:`~models.networks.feature_space.FeatureSpace`.
        backbone, image_shape: of methods that adapt a whole network.
    """

    prior: str = "gaussian"
    initialisation: str = "support"
    gradient: str = "equivariant"
    rank: int | None = None
    inner_lr: float = 0.2
    learn_inner_lr: bool = True
    units: str = "posterior"
    inner_samples: int = 0
    way: int = 5
    tasks: int = 12000
    seed: int = 0
    gate: bool = True
    counted: bool = True
    power: float = 0.5
    train_features: str = "linear"
    backbone: str = "conv4-64"
    image_shape: tuple[int, ...] | None = None

    def space(self, num_features: int, rank: int, predictor: str) -> FeatureSpace:
        """The map of features for a ``predictor`` before it is fitted: from ``num_features`` dimensions to ``rank`` directions,
        or to as many; none for a whole network."""
        if predictor == NETWORK:
            return RawSpace(num_features)
        return FeatureSpace(num_features, rank, power=self.power, learned=self.train_features != "none")

    def feature_rank(self, predictor: str, base_classes: int, num_features: int) -> int:
        """Discriminant directions for a predictor, where there are so many ``base_classes``; cosine does better on all
        dimensions, distances on the leading ones.

        Raises:
            UserError: more directions than base classes or features allow.
        """
        if self.rank is None:
            return 0 if predictor in ("cosine", NETWORK) else min(32, base_classes - 1, num_features)
        if self.rank >= base_classes or self.rank > num_features:
            raise UserError(f"`rank={self.rank}` is too large for {base_classes} base classes and {num_features} features")
        return self.rank


@dataclass(frozen=True)
class TuningSettings:
    """How the whole feature network is trained through the guide.

    Args:
        network_tasks: N, tasks of images in all.
        network_batch: tasks per step.
        network_learning_rate: outer step size of the network.
        batch_norm: what batch norm uses, see :class:`~inference.meta.tuning.BatchNorm`.
        accumulate: steps whose gradients are added up before the parameters move.
    """

    network_tasks: int
    network_batch: int
    network_learning_rate: float
    batch_norm: str
    accumulate: int


@dataclass(frozen=True)
class MetaSchedule:
    """How long and how fast a guide is trained.

    Args:
        tasks: training tasks in all.
        batch: tasks per step.
        learning_rate: outer Adam step size, decayed to zero by a cosine.
        feature_learning_rate, feature_decay: that of the map of features, where it is trained, and the precision γ of the
            Gaussian prior on its change.
        validations: how often validation tasks are scored (an epoch is the time between two).
        patience: stop after this many validations without a better objective; 0 never stops early.
        seed: training and validation tasks, posterior draws.
        validation_tasks: tasks per validation, and per decision about a step.
        earlier: weight in the loss of each step before the last, whose weight is 1.
        scale_speed: how many times faster :func:`~models.parameters.logarithms` are learned: where β is large, the scales of
            prior and logits must fall by orders of magnitude.
    """

    tasks: int
    batch: int = 16
    learning_rate: float = 2e-3
    feature_learning_rate: float = 1e-3
    feature_decay: float = 2.0
    validations: int = 10
    patience: int = 0
    seed: int = 0
    validation_tasks: int = 300
    earlier: float = 0.5
    scale_speed: float = 5.0

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return max(1, math.ceil(self.tasks / self.batch / self.validations))


def settings(kind: type[Settings], options: Any) -> Settings:
    """The fields of ``kind`` that a command's options have; those they lack keep their defaults."""
    return kind(**{f.name: getattr(options, f.name) for f in fields(kind) if hasattr(options, f.name)})  # type: ignore[arg-type]
