"""The stages of a run: pre-train, embed, meta-train; each is skipped when its result is already in the run folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from data.episodes import EpisodeSampler
from data.errors import DataWarning, UserError
from data.gather import gather
from data.items import SPLITS, ImageSplits, LabelledItems
from data.mixed import MixedSampler
from data.seeding import mix_seed, seeded
from inference.elbo import RateDistortionModule
from inference.meta.checkpoints import RENAMED
from inference.meta.learner import Learner
from inference.meta.methods import METHODS
from inference.meta.options import SibOptions
from inference.meta.pretrain import FINE_TUNING, LEARNING_RATE, WATCHED, pretraining
from inference.meta.settings import GuideSettings, MetaSchedule, PretrainSettings, VariantSettings, settings
from inference.meta.steps import guess_where_it_is_cheaper, keep_none_where_it_is_better, keep_steps_that_pay
from inference.meta.training import MetaTraining
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.tensors import (
    AT_ONCE,
    Features,
    dataset_name,
    load_features,
    load_state,
    load_tensors,
    save_features,
    save_tensors,
)
from inference.runs.training import Loop, train
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace, class_means
from models.networks.layers import embed

MIXED_IMBALANCE = 2.0
"""Concentration of the Dirichlet that draws query proportions of half the training tasks."""


def all_variants(options: SibOptions) -> list[Variant]:
    """What the options ask for, method by method."""
    swept = settings(VariantSettings, options)
    return [variant for name in options.methods for variant in METHODS[name].variants(swept)]


def check_training(
    options: SibOptions,
    data: ImageSplits | None,
    features: Features | None = None,
    network: FeatureNetwork | None = None,
) -> None:
    """Fail, before any training and before there is a run folder, where it could not be finished.

    Args:
        network: as for :func:`fit`.

    Raises:
        UserError: too few classes or images, those held out not counted; an unknown network, or weights that do not fit it;
            images that cannot be turned; or too many directions.
    """
    if features is None:
        assert data is not None
        num_features = (network or starting_network(settings(PretrainSettings, options), data)).num_features
        parts = {"train": kept_labels(data.train, options.holdout), "val": data.val}
        if options.rotations and options.epochs and len(set(data.image_shape[1:])) > 1:
            height, width = data.image_shape[1:]
            raise UserError(f"`rotations=true` turns square images, and these are {height}×{width}: leave it out, or cut them")
    else:
        num_features, parts = features["train"].items.shape[-1], features
    for split in ("train", "val"):
        EpisodeSampler(parts[split], options.spec(), split=f"{split} split")
    for predictor in options.predictor:
        settings(GuideSettings, options).feature_rank(predictor, parts["train"].num_classes, num_features)


def kept_labels(base: LabelledItems, images: int) -> LabelledItems:
    """What :func:`hold_out` keeps of the base classes, labels alone, once ``images`` of each are held out: enough to count
    by."""
    labels = LabelledItems(base.labels, base.labels, base.class_names)
    return labels.hold_out(images)[0] if images else labels


def fit(
    options: SibOptions, data: ImageSplits | None, run: RunFolder, network: FeatureNetwork | None = None
) -> dict[Variant, Learner]:
    """Train everything the options ask for, in ``run``; finished stages are read back instead.

    Args:
        data: images; not needed where ``options.features`` names a feature file.
        network: a feature network to start from, whatever the options say of one; it is trained for ``options.epochs``.

    Returns:
        variant -> fitted :class:`~inference.meta.learner.Learner`, references included.

    Raises:
        UserError: bad input, a damaged run folder, or a loss that is not finite.
        ValueError: neither images nor a feature file.
    """
    chosen, schedule = settings(GuideSettings, options), settings(MetaSchedule, options)
    spec, loop, variants = options.spec(), options.loop, all_variants(options)
    if options.features:
        network, features, dataset = None, *given_features(options.features, run)
    elif data is not None:
        chosen_features = settings(PretrainSettings, options)
        network, features = learned_features(chosen_features, loop, data, run, network)
        dataset = data.name
    else:
        raise ValueError("images are needed unless options.features names a feature file")
    fitted: dict[Variant, Learner] = {}
    objectives: dict[Variant, RateDistortionModule] = {}
    for variant in variants:
        space, means = feature_space(chosen, variant.predictor, features["train"])
        learner = Learner.build(variant, chosen, spec, space, means, network, dataset)
        samplers = {split: task_sampler(options, map_items(space, features[split]), split) for split in ("train", "val")}
        meta_train(learner, samplers, schedule, loop.unmixed, run)
        fitted[variant], objectives[variant] = learner, learner.objective
        for changed in keep_none_where_it_is_better(objectives, variant, deciding(samplers), schedule):
            fitted[changed].save(run.checkpoints / f"{changed.name}.safetensors", network=False)
    return fitted


def task_sampler(options: SibOptions, part: LabelledItems, split: str) -> EpisodeSampler | MixedSampler:
    """Tasks to train on, or to choose by: half of them balanced, half with unequal class proportions, unless the options ask
    for one kind or the split's classes have too few images for the second."""
    spec = options.spec()
    usual = EpisodeSampler(part, spec, split=f"{split} split")
    if not options.mixed or not spec.balanced:
        return usual
    with warnings.catch_warnings():  # training tasks need not have the proportions that they claim
        warnings.simplefilter("ignore", DataWarning)
        try:
            unequal = EpisodeSampler(part, options.spec(imbalance=MIXED_IMBALANCE), split=f"{split} split")
        except UserError:
            return usual
    return MixedSampler((usual, unequal))


def deciding(samplers: Mapping[str, Any]) -> MixedSampler:
    """Training and validation tasks, of ``samplers`` by the names of splits, which decide about trained steps together:
    validation classes alone are few, so that by chance all of them may be harder, or easier, than new classes are."""
    return MixedSampler((samplers["train"], samplers["val"]))


def feature_space(chosen: GuideSettings, predictor: str, base: LabelledItems) -> tuple[FeatureSpace, torch.Tensor]:
    """The map of features for a predictor, found from base-class features, and the classes' mean mapped features."""
    num_features = base.items.shape[-1]
    rank = chosen.feature_rank(predictor, base.num_classes, num_features)
    space = FeatureSpace(num_features, rank).fit(base.items, base.labels)
    return space, class_means(map_items(space, base).items, base.labels)


def map_items(space: FeatureSpace, part: LabelledItems) -> LabelledItems:
    """The same items in the feature space."""
    with torch.no_grad():
        return LabelledItems(gather(space(some) for some in part.items.split(AT_ONCE)), part.labels, part.class_names)


def given_features(file: str, run: RunFolder) -> tuple[Features, str]:
    """Features of a file, which the run keeps a copy of, and the name of their data set."""
    if not run.features.exists():
        save_features(run.features, load_features(file), {"dataset": dataset_name(file)})
    return load_features(run.features), dataset_name(run.features)


def learned_features(
    chosen: PretrainSettings, loop: Loop, data: ImageSplits, run: RunFolder, network: FeatureNetwork | None = None
) -> tuple[FeatureNetwork, Features]:
    """A trained feature network, from the given one where there is one, and the features of every split.

    The split ``held_out`` holds the images of base classes that pre-training never saw, where ``holdout`` asks for them.
    """
    data, held_out = hold_out(data, chosen.holdout)
    network = pretrain(chosen, loop, data, run, network)
    if not run.features.exists():
        with run.timed("embed"):
            sources = {split: data[split] for split in SPLITS} | ({"held_out": held_out} if held_out else {})
            features = {split: embed_items(network, part) for split, part in sources.items()}
            save_features(run.features, features, {"backbone": network.name, "dataset": data.name})
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


def starting_network(chosen: PretrainSettings, data: ImageSplits) -> FeatureNetwork:
    """The feature network before training: with given weights, or untrained.

    Raises:
        UserError: an unknown network, images that it cannot take, or weights that do not fit: see
            :meth:`~models.networks.feature_network.FeatureNetwork.pretrained`.
    """
    channels, size, _ = data.image_shape
    if chosen.weights is not None:
        name, file = chosen.backbone, chosen.weights
        return FeatureNetwork.pretrained(name, file, image_size=size, channels=channels, mirror=data.mirror)
    with seeded(chosen.seed):
        return FeatureNetwork(chosen.backbone, data.image_shape, mirror=data.mirror)


def pretrain(
    chosen: PretrainSettings, loop: Loop, data: ImageSplits, run: RunFolder, network: FeatureNetwork | None = None
) -> FeatureNetwork:
    """The feature network: read back, or trained from given weights (at a tenth of the step size) or from scratch.

    Args:
        network: one to start from, in place of what the settings say.
    """
    if run.network.exists():
        network = network or FeatureNetwork.from_description(load_tensors(run.network)[1])
        load_state(network, run.network)
        return network
    given = network is not None or chosen.weights is not None
    if network is None:
        network = starting_network(chosen, data)
        if network.normalisation is None:
            network.standardize.fit(data.train.items)
    if chosen.epochs:
        train_generations(network, chosen, loop, data, run, given=given)
    save_tensors(run.network, network.state_dict(), network.description())
    return network


def train_generations(
    network: FeatureNetwork, chosen: PretrainSettings, loop: Loop, data: ImageSplits, run: RunFolder, *, given: bool
) -> None:
    """Train ``network`` in place, once for each generation; the first one teaches the second, and so on.

    Args:
        given: whether all generations start from the weights that the network has; else from random ones, each from its own.
    """
    start, teacher = copy.deepcopy(network.backbone.state_dict()), None
    rate = LEARNING_RATE if chosen.weights is None else FINE_TUNING * LEARNING_RATE
    for generation in range(1, chosen.generations + 1):
        stage, seed = "pretrain", chosen.seed
        if generation > 1:
            stage, seed = f"pretrain-{generation}", mix_seed(chosen.seed, generation)
            restart = start if given else starting_network(replace(chosen, seed=seed), data).backbone.state_dict()
            network.backbone.load_state_dict(restart)
        with run.timed(stage), seeded(seed):
            module = pretraining(
                network,
                data,
                epochs=chosen.epochs,
                learning_rate=rate,
                rotations=chosen.rotations,
                teacher=teacher,
                seed=seed,
                tasks_seed=chosen.seed,
            )
            train(module, loop, run, stage, epochs=module.epochs, monitor=WATCHED, mode="max")
        teacher = module.frozen()


def meta_train(learner: Learner, samplers: Mapping[str, Any], schedule: MetaSchedule, loop: Loop, run: RunFolder) -> None:
    """Train one learner on tasks of the training split (of ``samplers`` by the names of splits), choosing its checkpoint on
    validation tasks; or read it back.

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
        keep_steps_that_pay(learner.objective, deciding(samplers), schedule, name)
        guess_where_it_is_cheaper(learner.objective, samplers["train"], schedule, name)
        learner.save(finished, network=False)
    load_state(learner.state(), finished, renamed=RENAMED)
