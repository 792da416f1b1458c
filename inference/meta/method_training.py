"""How one method is trained: on tasks of features, or with a network of its own on tasks of images."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

from data.augmentation import LETTERS, PHOTOGRAPHS
from data.items import ImageSplits, LabelledItems
from data.mixed import VariedSampler
from data.seeding import seeded
from data.semi_supervised import SemiSampler
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner
from inference.meta.mapping import map_parts
from inference.meta.methods import METHODS
from inference.meta.settings import MetaSchedule, TuningSettings, settings
from inference.meta.task_options import FewShotOptions
from inference.meta.tasks import kinds, training_tasks
from inference.meta.training import MetaTraining
from inference.meta.tuning import LOSS, ImageEmbedding, ImageTraining
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, near
from inference.runs.training import Loop, train

BEFORE = "before"
"""Stage of a method with a network of its own, on the features of that as it was before."""


def train_stage(module: MetaTraining, loop: Loop, run: RunFolder, stage: str, accumulate: int = 1) -> None:
    """Train a ``module`` as its schedule says, and leave it as it was after its best validation; ``stage`` and ``accumulate``
    are those of :func:`~inference.runs.training.train`."""
    epochs, patience = module.schedule.validations, module.schedule.patience
    train(module, loop, run, stage, epochs=epochs, monitor=LOSS, patience=patience, accumulate=accumulate)


def train_with_network(
    learner: FittedLearner,
    options: FewShotOptions,
    schedule: MetaSchedule,
    features: Features | None,
    data: ImageSplits,
    run: RunFolder,
) -> None:
    """Train a learner with its own network, on tasks of the images of ``data``: map and method from their start, the network
    from the pre-trained one, whose ``features`` are then given, or from scratch.

    A network that is pre-trained need not gain by it. So map and method are trained on its features, too, and where validation
    tasks cost no less with the network trained, they and the network as it was are what is kept.
    """
    name, before, kept = learner.variant.name, math.inf, {}
    if features is not None:
        start = copy.deepcopy(learner.state(network=True).state_dict())
        with run.timed(f"{name}-{BEFORE}"), seeded(schedule.seed):
            module = feature_training(learner, options, schedule, features)
            train_stage(module, options.loop.unmixed, run, f"{name}-{BEFORE}")
            before = module.validate()[LOSS]
        kept = copy.deepcopy(learner.state(network=True).state_dict())
        learner.state(network=True).load_state_dict(start)
    with run.timed(name), seeded(schedule.seed):
        module, loop, together = image_training(learner, options, schedule, data)
        train_stage(module, loop, run, name, together)
        after = module.validate()[LOSS] if kept else -math.inf
    if not after < before:
        print(f"{name}: the network stays as pre-trained: validation tasks cost {before:.2f} nats with it, {after:.2f} tuned")
        learner.state(network=True).load_state_dict(kept)


def own_tasks(learner: FittedLearner, options: FewShotOptions, part: LabelledItems) -> VariedSampler | SemiSampler:
    """What a learner is trained on: tasks of a ``part``, without some of the labels in half of the batches where it is one that
    has to learn what to make of that."""
    tasks = training_tasks(options, part)
    if isinstance(options, MetaOptions) and options.hides(learner.variant.method):
        return SemiSampler(tasks, options.unlabelled, every=2, askable=METHODS[learner.variant.method].asks)
    return tasks


def feature_training(
    learner: FittedLearner, options: FewShotOptions, schedule: MetaSchedule, features: Features
) -> MetaTraining:
    """Training on tasks of features, with the map of them where that is learned: as much of it as does not change, once."""
    once, embedding = learner.space.in_two()
    parts = map_parts(once, features)
    parts = {split: near(parts[split], options.loop.place) for split in ("train", "val")}
    tasks, validation = own_tasks(learner, options, parts["train"]), kinds(options, parts["val"], "val")
    return MetaTraining(learner.objective, tasks, validation, schedule, embedding)


def image_training(
    learner: FittedLearner, options: FewShotOptions, schedule: MetaSchedule, data: ImageSplits
) -> tuple[ImageTraining, Loop, int]:
    """Training on tasks of images, with the learner's network; how it runs, and over how many steps gradients are added up."""
    how = settings(TuningSettings, options)
    assert learner.network is not None
    module = ImageTraining(
        learner.objective,
        own_tasks(learner, options, data.train),
        kinds(options, data.val, "val"),
        replace(schedule, tasks=how.network_tasks, batch=how.network_batch),
        ImageEmbedding(learner.network, learner.space, how.batch_norm),
        network_learning_rate=how.network_learning_rate,
        augmentation=PHOTOGRAPHS if data.mirror else LETTERS,
    )
    return module, options.loop, how.accumulate
