"""The stages of a run: pre-train, embed, meta-train; each is skipped when its result is already in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from data.episodes import EpisodeSampler
from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems
from data.seeding import seeded
from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import evaluate
from inference.meta.learner import RENAMED, Learner
from inference.meta.methods import METHODS
from inference.meta.options import SibOptions
from inference.meta.pretrain import WATCHED, pretraining
from inference.meta.settings import GuideSettings, MetaSchedule, PretrainSettings, VariantSettings, settings
from inference.meta.training import MetaTraining
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, dataset_name, load_features, load_state, save_features, save_tensors
from inference.runs.training import Loop, train
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace, class_means
from models.networks.layers import embed


def all_variants(options: SibOptions) -> list[Variant]:
    """What the options ask for, method by method."""
    swept = settings(VariantSettings, options)
    return [variant for name in options.methods for variant in METHODS[name].variants(swept)]


def check_training(options: SibOptions, data: ImageSplits | None, features: Features | None = None) -> None:
    """Fail, before any training and before there is a run folder, where it could not be finished.

    Raises:
        UserError: too few classes or images, those held out not counted; an unknown network; or too many directions.
    """
    if features is None:
        assert data is not None
        try:
            num_features = FeatureNetwork(options.backbone, data.image_shape).num_features
        except ValueError as error:
            raise UserError(str(error)) from None
        parts = {"train": kept_labels(data.train, options.holdout), "val": data.val}
    else:
        num_features, parts = features["train"].items.shape[-1], features
    for split in ("train", "val"):
        EpisodeSampler(parts[split], options.spec(), split=f"{split} split")
    for predictor in options.predictor:
        settings(GuideSettings, options).feature_rank(predictor, parts["train"].num_classes, num_features)


def kept_labels(base: LabelledItems, images: int) -> LabelledItems:
    """What :func:`hold_out` keeps of the base classes, labels alone: enough to count by."""
    labels = LabelledItems(base.labels, base.labels, base.class_names)
    return labels.hold_out(images)[0] if images else labels


def fit(options: SibOptions, data: ImageSplits | None, run: RunFolder) -> dict[Variant, Learner]:
    """Train everything the options ask for, in ``run``; finished stages are read back instead.

    Args:
        data: images; not needed where ``options.features`` names a feature file.

    Returns:
        variant -> fitted :class:`~inference.meta.learner.Learner`, references included.

    Raises:
        UserError: bad input, a damaged run folder, or a loss that is not finite.
    """
    chosen, schedule = settings(GuideSettings, options), settings(MetaSchedule, options)
    spec, loop, variants = options.spec(), options.loop, all_variants(options)
    if options.features:
        network, features, dataset = None, *given_features(options.features, run)
    elif data is not None:
        network, features, dataset = *learned_features(settings(PretrainSettings, options), loop, data, run), data.name
    else:
        raise ValueError("images are needed unless options.features names a feature file")
    fitted: dict[Variant, Learner] = {}
    objectives: dict[Variant, RateDistortionModule] = {}
    for variant in variants:
        space, means = feature_space(chosen, variant.predictor, features["train"])
        learner = Learner.build(variant, chosen, spec, space, means, network, dataset)
        samplers = {
            split: EpisodeSampler(map_items(space, features[split]), spec, split=f"{split} split") for split in ("train", "val")
        }
        meta_train(learner, samplers, schedule, loop.unmixed, run)
        fitted[variant], objectives[variant] = learner, learner.objective
        for changed in keep_steps_that_pay(objectives, variant, samplers["val"], schedule):
            fitted[changed].save(run.checkpoints / f"{changed.name}.safetensors")
    return fitted


def keep_steps_that_pay(
    objectives: Mapping[Variant, RateDistortionModule], variant: Variant, validation: Any, schedule: MetaSchedule
) -> list[Variant]:
    """K steps contain none, their sizes zero: where validation tasks find the objective after them worse than that of the
    reference without steps, they become that reference.

    Args:
        objectives: what has been trained.
        variant: just trained; nothing happens until its partner is, too.
        validation: sampler of validation tasks, in the variants' feature space.

    Returns:
        the variants that changed.
    """
    partners = [v for v in objectives if replace(v, steps=0, reference=False) == replace(variant, steps=0, reference=False)]
    if len(partners) < 2:
        return []
    none, some = sorted(partners, key=lambda v: v.steps)
    losses = {}
    for v in partners:
        tasks, seed = schedule.validation_tasks, schedule.seed
        scores = evaluate(objectives[v].model, objectives[v].guide, validation, tasks=tasks, seed=seed)
        losses[v] = scores.distortion + (v.beta or 0.0) * (scores.rate or 0.0)
    if losses[some] <= losses[none]:
        return []
    print(
        f"{some.name}: {losses[some]:.2f} nats per validation task with its steps and {losses[none]:.2f} without: "
        "they are left out"
    )
    kept = {name: value for name, value in objectives[none].state_dict().items() if ".rule." not in name}
    objectives[some].load_state_dict(kept, strict=False)
    rule: Any = objectives[some].guide.rule
    rule.stand_still()
    return [some]


def feature_space(chosen: GuideSettings, predictor: str, base: LabelledItems) -> tuple[FeatureSpace, torch.Tensor]:
    """The map of features for a predictor, found from base-class features, and the classes' mean mapped features."""
    num_features = base.items.shape[-1]
    rank = chosen.feature_rank(predictor, base.num_classes, num_features)
    space = FeatureSpace(num_features, rank).fit(base.items, base.labels)
    return space, class_means(map_items(space, base).items, base.labels)


def map_items(space: FeatureSpace, part: LabelledItems) -> LabelledItems:
    """The same items in the feature space."""
    with torch.no_grad():
        return LabelledItems(space(part.items), part.labels, part.class_names)


def given_features(file: str, run: RunFolder) -> tuple[Features, str]:
    """Features of a file, which the run keeps a copy of, and the name of their data set."""
    if not run.features.exists():
        save_features(run.features, load_features(file), {"dataset": dataset_name(file)})
    return load_features(run.features), dataset_name(run.features)


def learned_features(
    chosen: PretrainSettings, loop: Loop, data: ImageSplits, run: RunFolder
) -> tuple[FeatureNetwork, Features]:
    """A trained feature network, and the features of every split.

    The split ``held_out`` holds the images of base classes that pre-training never saw, where ``holdout`` asks for them.
    """
    data, held_out = hold_out(data, chosen.holdout)
    network = pretrain(chosen, loop, data, run)
    if not run.features.exists():
        with run.timed("embed"):
            sources = {split: data[split] for split in SPLITS} | ({"held_out": held_out} if held_out else {})
            features = {split: embed_items(network, part) for split, part in sources.items()}
            save_features(run.features, features, {"backbone": chosen.backbone, "dataset": data.name})
    return network, load_features(run.features)


def hold_out(data: ImageSplits, images: int) -> tuple[ImageSplits, LabelledItems | None]:
    """Base classes without their last ``images`` images, and those images."""
    if not images:
        return data, None
    kept, held = data.train.hold_out(images)
    return ImageSplits(data.name, kept, data.val, data.test, mirror=data.mirror), held


def embed_items(network: FeatureNetwork, part: LabelledItems) -> LabelledItems:
    """Features of labelled images."""
    return LabelledItems(embed(network, part.items), part.labels, part.class_names)


def pretrain(chosen: PretrainSettings, loop: Loop, data: ImageSplits, run: RunFolder) -> FeatureNetwork:
    """The feature network: read back, or trained from given weights or from scratch."""
    with seeded(chosen.seed):
        network = FeatureNetwork(chosen.backbone, data.image_shape, mirror=data.mirror)
    network.standardize.fit(data.train.items)
    start = run.network if run.network.exists() else chosen.weights
    if start:
        load_state(network, start)
    if run.network.exists():
        return network
    if chosen.epochs:
        with run.timed("pretrain"), seeded(chosen.seed):
            module = pretraining(network, data, epochs=chosen.epochs, seed=chosen.seed)
            train(module, loop, run, "pretrain", epochs=module.epochs, monitor=WATCHED, mode="max")
    save_tensors(run.network, network.state_dict(), network.description())
    return network


def meta_train(
    learner: Learner, samplers: Mapping[str, EpisodeSampler], schedule: MetaSchedule, loop: Loop, run: RunFolder
) -> None:
    """Train one learner on tasks of the training split, choosing its checkpoint on validation tasks; or read it back.

    A method without parameters is ready as it is.
    """
    name = learner.variant.name
    finished = run.checkpoints / f"{name}.safetensors"
    if not finished.exists():
        if any(parameter.requires_grad for parameter in learner.objective.parameters()):
            with run.timed(name), seeded(schedule.seed):
                module = MetaTraining(learner.objective, samplers["train"], samplers["val"], schedule)
                train(
                    module,
                    loop,
                    run,
                    name,
                    epochs=schedule.validations,
                    monitor="val/loss",
                    mode="min",
                    patience=schedule.patience,
                )
        learner.save(finished)
    load_state(learner.state(), finished, renamed=RENAMED)
