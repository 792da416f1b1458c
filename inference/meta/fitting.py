"""Fit any method of meta-learning to data of one's own: ``Learner.fit(data, method="maml:steps=5")``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from data.arguments import as_truth, as_whole, check_kind, shown
from data.catalogue import FEW_SHOT
from data.errors import UserError
from data.gather import gather
from data.inputs import AT_ONCE, as_items
from data.items import SPLITS, ImageSplits, as_images
from inference.meta import learner
from inference.meta.family_options import ImageMethods, MetaOptions
from inference.meta.report import mark_selected, selected_variant, validate
from inference.meta.stages import check_training, fit
from inference.meta.task_options import FewShotOptions
from inference.runs.commands import options_to_yaml, write_metrics
from inference.runs.files import finite
from inference.runs.folder import RunFolder
from inference.runs.interruptions import working_in
from inference.runs.tensors import save_features
from models.networks.feature_network import FeatureNetwork

Kind = TypeVar("Kind", bound=learner.FittedLearner)


class Learner(learner.FittedLearner):
    """A method of ``svi_meta`` that is fitted to data: feature network, feature space, model and guide.

    Fit one with :meth:`fit`, or read one with :meth:`load`, from a run folder or a file of :meth:`save`. :meth:`predict`
    classifies images of any kind; :meth:`posterior` and :meth:`predictive` say what is known of tasks; :meth:`evaluate` scores
    it on new ones.
    """

    @classmethod
    def fit(
        cls,
        data: Any,
        labels: Any = None,
        *,
        method: str | Sequence[str],
        network: FeatureNetwork | None = None,
        backbone: str | nn.Module | None = None,
        mirror: bool = True,
        **options: Any,
    ) -> Self:
        """Pre-train a feature network and train a method on tasks of ``data``.

        Args:
            data, labels, network, backbone, mirror: as for :func:`fit_own`.
            method: a name of :data:`~inference.meta.methods.METHODS` with its own options behind it, as in
                ``anil:steps=10:first_order``. Of several the one with the lowest NLL on validation tasks is returned.
            options: fields of :class:`~inference.meta.family_options.MetaOptions`. ``out`` keeps the run folder; otherwise
                nothing stays on disk.

        Raises:
            UserError: an unknown method, bad options, data that cannot serve them, or a network for other images.
        """
        if "methods" in options:
            raise UserError("no option `methods`: did you mean `method`?")
        try:
            asked = {"methods": ImageMethods.read(method), **options}
        except ValueError as error:
            raise UserError(f"`method={shown(method)}`: {error}") from None
        return fit_own(cls, MetaOptions, asked, data, labels, network=network, backbone=backbone, mirror=mirror, command="meta")


def fit_own(
    kind: type[Kind],
    known: type[FewShotOptions],
    options: Mapping[str, Any],
    data: Any,
    labels: Any = None,
    *,
    network: FeatureNetwork | None = None,
    backbone: str | nn.Module | None = None,
    mirror: bool = True,
    command: str,
) -> Kind:
    """What options ask for, trained on ``data``; of several variants the one with the lowest NLL on validation tasks.

    Args:
        kind: what is returned.
        known: the class of the options.
        options: its fields by name; β is 0.1 and there are no progress bars where they do not say.
        data: :class:`~data.items.ImageSplits` with disjoint training, validation and test classes; or a data set that is split
            by class: what :func:`~data.inputs.as_items` takes, such as images with ``labels``, a ``Dataset`` or a
            ``DataLoader``. Images are uint8, or floats in [0, 1]; features ``[n, D]`` need no network.
        labels: ``[n]``, classes as numbers or names, where ``data`` are items alone.
        network: a trained feature network to use as it is, such as another fit's ``network``.
        backbone: a name, or a module of your own from ``[n, channels, height, width]`` to ``[n, D]``; it is trained in place
            for ``epochs`` passes over the training classes (0: it is used as it is).
        mirror: whether a mirror image still belongs to its class, of data that do not say so themselves.
        command: its name in ``metrics.json``.

    Raises:
        UserError: bad options, data that cannot serve them, or a network for other images.
    """
    check_kind("network", network, FeatureNetwork | None, "a FeatureNetwork")
    check_kind("backbone", backbone, str | nn.Module | None, "a name or a module")
    splits = own_splits(data, labels, seed=as_whole(options.get("seed", 0), "seed"), mirror=as_truth(mirror, "mirror"))
    given = {"beta": 0.1, "progress": False, **({"data": splits.name} if splits.name in FEW_SHOT else {}), **options}
    with tempfile.TemporaryDirectory() as scratch:
        if splits.train.items.dim() == 2:
            parts = {split: splits[split] for split in SPLITS}
            file = save_features(Path(scratch) / "features.safetensors", parts, {"dataset": splits.name})
            given["features"] = str(file)
        elif network is not None:
            check_shape(network, splits)
            given |= {"backbone": network.name, "epochs": 0}
        elif isinstance(backbone, nn.Module):
            network = own_network(backbone, splits)
            given["backbone"] = network.name
        elif backbone is not None:
            given["backbone"] = backbone
        chosen = known(**given)
        if splits.train.items.dim() == 2:
            check_training(chosen, None, parts)
        elif not chosen.features:
            check_training(chosen, splits, network=network)
        run = RunFolder.create(chosen.out or Path(scratch) / "run", command, options_to_yaml(chosen))
        with working_in(run, new=True, resumes=False):
            fitted = fit(chosen, splits, run, network)
            records = mark_selected(validate(fitted, run, splits))
            rows = [finite(asdict(record)) for record in records]
            write_metrics(run, command, chosen, rows, dataset=splits.name)
        best = fitted[selected_variant(fitted, records)]
        found: dict[str, Any] = {"space": best.space, "objective": best.objective, "network": best.network}
        own = kind(best.variant, best.settings, best.spec, **found, dataset=best.dataset)
        own.own_network = best.own_network
        return own


def own_splits(data: Any, labels: Any = None, *, seed: int, mirror: bool) -> ImageSplits:
    """Data of one's own as splits of uint8 images, or of features.

    Args:
        data, labels: see :func:`fit_own`.
        seed: of the split by class.
        mirror: whether a mirror image still belongs to its class.

    Raises:
        UserError: real targets, too few classes, or neither images nor features.
    """
    splits = data if isinstance(data, ImageSplits) else ImageSplits.of(as_items(data, labels), seed=seed, mirror=mirror)
    items = splits.train.items
    if items.dim() == 4 and items.is_floating_point():
        parts = {split: replace(splits[split], items=as_bytes(splits[split].items)) for split in SPLITS}
        return ImageSplits(splits.name, **parts, mirror=splits.mirror)
    if items.dim() not in (2, 4) or (items.dim() == 2) != items.is_floating_point():
        shape = "×".join(map(str, items.shape[1:]))
        raise UserError(
            f"`data` must hold images (channels×height×width) or features (a row of floats), not {shape} {items.dtype}"
        )
    return splits


def as_bytes(images: Tensor) -> Tensor:
    """Images of floats in [0, 1] as uint8, some at a time."""
    checked = (as_images(part, part.shape[1:]) for part in images.split(AT_ONCE))
    return gather((part * 255).round().to(torch.uint8) for part in checked)


def own_network(backbone: nn.Module, splits: ImageSplits) -> FeatureNetwork:
    """A feature network of a user's ``backbone``, which standardises images by those of the training classes.

    Raises:
        UserError: it does not take the images.
    """
    try:
        network = FeatureNetwork(backbone, splits.image_shape, mirror=splits.mirror)
    except ValueError as error:
        raise UserError(str(error)) from None
    network.standardize.fit(splits.train.items)
    return network


def check_shape(network: FeatureNetwork, data: ImageSplits) -> None:
    """Refuse a network for images of another shape than those of ``data``.

    Raises:
        UserError: it is one.
    """
    if network.image_shape != data.image_shape:
        taken, given = ("×".join(map(str, shape)) for shape in (network.image_shape, data.image_shape))
        raise UserError(f"network takes images of {taken} (channels×height×width), the data are {given}")
