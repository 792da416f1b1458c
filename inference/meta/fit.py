"""The stages of a SIB run: pre-train, embed, meta-train; each is skipped when its result is already in the run folder."""

from __future__ import annotations

from dataclasses import replace

import torch

from data.episodes import EpisodeSampler
from data.items import SPLITS, ImageSplits, LabelledItems
from data.seeding import seeded
from inference.meta.build import build_objective
from inference.meta.options import SibOptions, Variant
from inference.meta.pretrain import Pretraining
from inference.meta.sib import SIB
from inference.meta.training import MetaSchedule, MetaTraining
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, load_features, load_state, save_features, save_tensors
from inference.runs.training import train
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace, class_means
from models.networks.layers import embed


def fit(options: SibOptions, data: ImageSplits | None, run: RunFolder) -> dict[Variant, SIB]:
    """Train everything the options ask for, in ``run``; finished stages are read back instead.

    Args:
        data: images; not needed where ``options.features`` names a feature file.

    Returns:
        variant -> fitted :class:`~inference.meta.sib.SIB`, the K = 0 references included.

    Raises:
        UserError: bad input, a damaged run folder, or a loss that is not finite.
    """
    network, features = prepare_features(options, data, run)
    base, fitted = features["train"], {}
    for variant in options.variants():
        rank = options.feature_rank(variant.predictor, base.num_classes, base.items.shape[-1])
        space = FeatureSpace(base.items.shape[-1], rank).fit(base.items, base.labels)
        mapped = {split: map_items(space, part) for split, part in features.items()}
        objective = build_objective(options, variant, class_means(mapped["train"].items, base.labels))
        sib = SIB(options, variant, space=space, objective=objective, network=network)
        meta_train(sib, mapped, data, run)
        fitted[variant] = sib
    return fitted


def map_items(space: FeatureSpace, part: LabelledItems) -> LabelledItems:
    """The same items in the feature space."""
    with torch.no_grad():
        return LabelledItems(space(part.items), part.labels, part.class_names)


def prepare_features(options: SibOptions, data: ImageSplits | None, run: RunFolder) -> tuple[FeatureNetwork | None, Features]:
    """A trained feature network (``None`` when starting from a feature file) and the features of every split.

    The split ``held_out`` holds the images of base classes that pre-training never saw, where ``options.holdout`` asks for
    them.
    """
    if options.features:
        features = load_features(options.features)
        if not run.features.exists():
            save_features(run.features, features)
        return None, features
    if data is None:
        raise ValueError("images are needed unless options.features names a feature file")
    data, held_out = hold_out(data, options.holdout)
    network = pretrain(options, data, run)
    if not run.features.exists():
        with run.timed("embed"):
            sources = {split: data[split] for split in SPLITS} | ({"held_out": held_out} if held_out else {})
            features = {split: embed_items(network, part) for split, part in sources.items()}
            save_features(run.features, features, {"backbone": options.backbone, "dataset": data.name})
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


def pretrain(options: SibOptions, data: ImageSplits, run: RunFolder) -> FeatureNetwork:
    """The feature network: read back, or trained from ``options.weights`` or from scratch."""
    with seeded(options.seed):
        network = FeatureNetwork(options.backbone, data.image_shape, mirror=data.mirror)
    network.standardize.fit(data.train.items)
    start = run.network if run.network.exists() else options.weights
    if start:
        load_state(network, start)
    if run.network.exists():
        return network
    if options.epochs:
        with run.timed("pretrain"), seeded(options.seed):
            module = Pretraining(network, data, epochs=options.epochs, seed=options.seed)
            train(
                module,
                options.loop,
                run,
                "pretrain",
                epochs=options.epochs,
                monitor="val_accuracy",
                mode="max",
            )
    save_tensors(run.network, network.state_dict(), network.description())
    return network


def meta_train(sib: SIB, features: Features, data: ImageSplits | None, run: RunFolder) -> None:
    """Train one guide, or read it back."""
    options, variant = sib.options, sib.variant
    finished = run.checkpoints / f"{variant.name}.safetensors"
    if not finished.exists():
        schedule = MetaSchedule(
            tasks=options.tasks,
            batch=options.batch,
            learning_rate=options.learning_rate,
            validations=options.validations,
        )
        samplers = {
            split: EpisodeSampler(features[split], options.spec(), split=f"{split} split") for split in ("train", "val")
        }
        with run.timed(variant.name), seeded(options.seed):
            module = MetaTraining(sib.objective, samplers["train"], samplers["val"], schedule, seed=options.seed)
            train(
                module,
                replace(options.loop, precision="32-true"),
                run,
                variant.name,
                epochs=schedule.validations,
                monitor="val/loss",
                mode="min",
                patience=options.patience,
            )
        save_tensors(finished, sib.state().state_dict(), sib.metadata())
    load_state(sib.state(), finished)
