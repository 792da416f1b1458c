"""The stages of a run: pre-train, embed, meta-train; each is skipped when its result is already in the run folder."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from data.ambiguous import sampler_of
from data.episodes import TaskSpec
from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems
from data.seeding import mix_seed, seeded
from inference.meta.checkpoints import RENAMED
from inference.meta.learner import FittedLearner
from inference.meta.mapping import feature_space, map_parts
from inference.meta.method_training import feature_training, train_stage, train_with_network
from inference.meta.methods import METHODS
from inference.meta.methods.maml import start_from
from inference.meta.methods.sib import blank_means
from inference.meta.options import SibOptions
from inference.meta.pretrain import FINE_TUNING, LEARNING_RATE, WATCHED, pretraining
from inference.meta.settings import (
    NETWORK,
    GuideSettings,
    MetaSchedule,
    PretrainSettings,
    TuningSettings,
    settings,
)
from inference.meta.steps import guess_where_it_is_cheaper, keep_none_where_it_is_better, keep_steps_that_pay
from inference.meta.task_options import FewShotOptions
from inference.meta.tasks import Kinds, deciding, kinds
from inference.meta.temperature import fit_temperature
from inference.meta.tuning import tune
from inference.meta.variants import Variant
from inference.runs.checks import check_network_memory
from inference.runs.folder import RunFolder
from inference.runs.tensors import (
    Features,
    dataset_name,
    load_features,
    load_state,
    load_tensors,
    save_features,
    save_tensors,
)
from inference.runs.training import Loop, train
from models.networks.feature_network import OWN, FeatureNetwork
from models.networks.layers import as_trained, device_of, embed


def check_training(
    options: FewShotOptions,
    data: ImageSplits | None,
    features: Features | None = None,
    network: FeatureNetwork | None = None,
) -> None:
    """Fail, before any training and before there is a run folder, where it could not be finished.

    Args:
        network: as for :func:`fit`.

    Raises:
        UserError: too few classes or images, those held out not counted; an unknown network, or weights that do not fit it; or
            too many directions.
    """
    if features is None:
        assert data is not None
        if network is None:
            batch = options.batch if options.epochs else 1
            check_network_memory(options.backbone, data.image_shape, data.train.num_classes, batch, options.loop)
        started = network or starting_network(settings(PretrainSettings, options), data)
        num_features = started.num_features
        whole = [variant.method for variant in options.variants() if variant.predictor == NETWORK]
        if whole and started.kind == OWN:
            raise UserError(f"{whole[0]} builds the network it adapts by its name: give one as `backbone`, such as conv4-64")
        if whole and started.standardize.mean.shape[0] != data.image_shape[0]:
            raise UserError(
                f"{whole[0]} adapts a network for images of {data.image_shape[0]} channels, and the weights are for "
                f"{started.standardize.mean.shape[0]}: leave out {whole[0]}, or `weights`"
            )
        parts = {"train": kept_labels(data.train, options.holdout), "val": data.val}
    else:
        num_features, parts = features["train"].items.shape[-1], features
    for split in ("train", "val"):
        sampler_of(parts[split], options.spec(), split=f"{split} split")
    for predictor in dict.fromkeys(variant.predictor for variant in options.variants()):
        settings(GuideSettings, options).feature_rank(predictor, parts["train"].num_classes, num_features)


def kept_labels(base: LabelledItems, images: int) -> LabelledItems:
    """What :func:`hold_out` keeps of the base classes, labels alone, once ``images`` of each are held out: enough to count
    by."""
    labels = LabelledItems(base.labels, base.labels, base.class_names)
    return labels.hold_out(images)[0] if images else labels


def fit(
    options: FewShotOptions, data: ImageSplits | None, run: RunFolder, network: FeatureNetwork | None = None
) -> dict[Variant, FittedLearner]:
    """Train everything the options ask for, in ``run``; finished stages are read back instead.

    Args:
        data: images; not needed where ``options.features`` names a feature file.
        network: a feature network to start from, whatever the options say of one; it is trained for ``options.epochs``.

    Returns:
        variant -> fitted :class:`~inference.meta.learner.FittedLearner`, references included.

    Raises:
        UserError: bad input, a damaged run folder, or a loss that is not finite.
        ValueError: neither images nor a feature file.
    """
    chosen, schedule = settings(GuideSettings, options), settings(MetaSchedule, options)
    spec, variants = options.spec(), options.variants()
    pretrained = network is not None or options.weights is not None or options.epochs > 0
    if options.features:
        network, features, dataset = None, *given_features(options.features, run)
    elif data is not None:
        network, features = learned_features(options, data, run, network)
        dataset = data.name
    else:
        raise ValueError("images are needed unless options.features names a feature file")
    fitted: dict[Variant, FittedLearner] = {}
    for variant in variants:
        if variant.predictor == NETWORK:
            assert data is not None
            assert network is not None
            many = settings(TuningSettings, options).network_tasks
            learner = whole_network(variant, replace(chosen, tasks=many), spec, data, network)
        else:
            space, means = feature_space(chosen, variant.predictor, features["train"])
            own = copy.deepcopy(network) if options.own_networks else network
            learner = FittedLearner.build(variant, chosen, spec, space, means, own, dataset)
            learner.own_network = options.own_networks
        fitted[variant] = learner
        meta_train(learner, options, features, run, data, pretrained=pretrained)

        def mapped(one: Variant) -> Kinds:
            return deciding(options, map_parts(fitted[one].space, features))

        states = {one: known.state() for one, known in fitted.items()}
        for changed in keep_none_where_it_is_better(states, variant, mapped, schedule):
            fitted[changed].save(run.checkpoints / f"{changed.name}.safetensors", network=False)
    return fitted


def given_features(file: str, run: RunFolder) -> tuple[Features, str]:
    """Features of a file, which the run keeps a copy of, and the name of their data set."""
    if not run.features.exists():
        save_features(run.features, load_features(file), {"dataset": dataset_name(file)})
    return load_features(run.features), dataset_name(run.features)


def learned_features(
    options: FewShotOptions, data: ImageSplits, run: RunFolder, network: FeatureNetwork | None = None
) -> tuple[FeatureNetwork, Features]:
    """A trained feature network, from the given one where there is one, and the features of every split: pre-trained on labels,
    and then, where the options say so, through the guide.

    The split ``held_out`` holds the images of base classes that pre-training never saw, where ``holdout`` asks for them.
    """
    data, held_out = hold_out(data, options.holdout)
    network = pretrain(settings(PretrainSettings, options), options.loop, data, run, network)
    if isinstance(options, SibOptions) and options.train_features == "all":
        tune(network, options, data, run)
    if not run.features.exists():
        with run.timed("embed"):
            sources = {split: data[split] for split in SPLITS} | ({"held_out": held_out} if held_out else {})
            features = {split: embed_items(network, part, options.loop.place) for split, part in sources.items()}
            save_features(run.features, features, {"backbone": network.name, "dataset": data.name})
    return network, load_features(run.features)


def hold_out(data: ImageSplits, images: int) -> tuple[ImageSplits, LabelledItems | None]:
    """Base classes without their last ``images`` images, and those images."""
    if not images:
        return data, None
    kept, held = data.train.hold_out(images)
    return ImageSplits(data.name, kept, data.val, data.test, mirror=data.mirror), held


def embed_items(network: FeatureNetwork, part: LabelledItems, device: torch.device | None = None) -> LabelledItems:
    """Features of labelled images; the ``network`` is on the ``device`` for it, where one is given, and then back
    where it was."""
    home = device_of(network)
    try:
        return LabelledItems(embed(network.to(device or home), part.items), part.labels, part.class_names)
    finally:
        network.to(home)


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
        return as_trained(network) if chosen.epochs else network
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
                teacher=teacher,
                seed=seed,
                tasks_seed=chosen.seed,
            )
            train(module, loop, run, stage, epochs=module.epochs, monitor=WATCHED, mode="max")
        teacher = module.frozen()


def meta_train(
    learner: FittedLearner,
    options: FewShotOptions,
    features: Features,
    run: RunFolder,
    data: ImageSplits | None = None,
    *,
    pretrained: bool = False,
) -> None:
    """Train one learner on tasks of the training split of ``features``, choosing its checkpoint on validation tasks; or read it
    back.

    A method without parameters is ready as it is, and its map of features stays where it was found. That of another is trained
    with it where it has parameters; else items are mapped once. A learner with a network of its own trains that too, on tasks
    of the images of ``data``; one that is ``pretrained`` only where validation tasks gain by it.
    """
    name, earlier = learner.variant.name, METHODS[learner.variant.method].earlier
    schedule = replace(settings(MetaSchedule, options), earlier=earlier)
    if learner.variant.predictor == NETWORK:  # all weights of a network are trained as those of a network
        terms = settings(TuningSettings, options)
        rate, lengths = terms.network_learning_rate, {"tasks": terms.network_tasks, "batch": terms.network_batch}
        schedule = replace(schedule, learning_rate=rate, **lengths)
    finished = run.checkpoints / f"{name}.safetensors"
    if not finished.exists():
        trained = any(parameter.requires_grad for parameter in learner.objective.parameters())
        if learner.variant.predictor == NETWORK:
            assert data is not None
            features = {split: learner.embedded(data[split]) for split in ("train", "val")}
        if trained and learner.trains_network:
            assert data is not None
            train_with_network(learner, options, schedule, features if pretrained else None, data, run)
        elif trained:
            with run.timed(name), seeded(schedule.seed):
                train_stage(feature_training(learner, options, schedule, features), options.loop.unmixed, run, name)
        if learner.trains_network:
            assert data is not None
            assert learner.network is not None
            learner.network.eval()
            features = {split: embed_items(learner.network, data[split], options.loop.place) for split in ("train", "val")}
        mapped = map_parts(learner.space, features)
        decide = deciding(options, mapped)
        keep_steps_that_pay(learner.objective, decide, schedule, name)
        guess_where_it_is_cheaper(learner.objective, kinds(options, mapped["train"], "train"), schedule, name)
        fit_temperature(learner.objective, decide, schedule)
        learner.save(finished, network=learner.own_network)
    load_state(learner.state(network=learner.own_network), finished, renamed=RENAMED)


def whole_network(
    variant: Variant, chosen: GuideSettings, spec: TaskSpec, data: ImageSplits, network: FeatureNetwork
) -> FittedLearner:
    """A learner that adapts a whole network, which starts as the pre-trained ``network``; its features are pixels."""
    pixels = FeatureNetwork("pixels", data.image_shape)
    pixels.standardize.load_state_dict(network.standardize.state_dict())
    known = replace(chosen, image_shape=tuple(data.image_shape))
    space = chosen.space(pixels.num_features, 0, NETWORK)
    learner = FittedLearner.build(variant, known, spec, space, blank_means(2, 0), pixels.eval(), data.name)
    start_from(learner.model, learner.guide, network)
    learner.own_network = True
    return learner


def features_of(learner: FittedLearner, data: ImageSplits | None, run: RunFolder, split: str) -> LabelledItems:
    """Features of a ``split``, by name, from the network that the learner has: the run's, or its own."""
    if not learner.own_network:
        return load_features(run.features)[split]
    assert data is not None
    return learner.embedded(data[split])
