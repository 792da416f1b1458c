"""Teachers, and the weights that finetuned students start from: trained once and kept, or read from files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.augmentation import CROPS, augmentation_for
from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from inference.evaluation.tables import plural
from inference.runs.classifier import train_classifier
from inference.runs.files import sole_writer
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors, save_tensors
from inference.runs.training import Loop
from inference.runs.updates import Schedule
from inference.vid.options import VidOptions
from models.networks.backbones import Standardize
from models.networks.classifiers import build_network, pretrained_network
from models.networks.layers import as_trained

CHECKSUM = "checksum"
"""Metadata of a network that is kept: of its numbers, in the order of its state dict."""


@dataclass(frozen=True)
class TeacherSettings:
    """How teachers, and the networks that finetuned students start from, train.

    Attributes:
        epochs: over their data.
        batch, learning_rate, weight_decay: of AdamW with one cycle.
        augment: whether images are augmented.
        seed: of weights, order and augmentation.
        loop: device, processes and precision.
        cache: the folder trained networks are kept in.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    augment: bool
    seed: int
    loop: Loop
    cache: Path

    @classmethod
    def of(cls, options: VidOptions) -> TeacherSettings:
        """The teacher's part of a run's options."""
        rates = (options.batch, options.learning_rate, options.weight_decay)
        return cls(options.epochs, *rates, options.augment, options.seed, options.loop, Path(options.cache))

    def schedule(self, items: int) -> Schedule:
        """In updates, for so many items."""
        updates = self.epochs * max(1, items // self.batch)
        return Schedule(updates, self.batch, self.learning_rate, self.weight_decay)


@dataclass(frozen=True)
class Recipe:
    """Everything a trained network depends on; its hash names the cached file.

    Attributes:
        data: checksum of the training images and labels.
        network, epochs, batch, learning_rate, weight_decay, augment, precision, seed: as in the options.
        crops: how photographs are cut; ``None`` where none are.
    """

    data: str
    network: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    augment: bool
    precision: str
    seed: int
    crops: str | None = None

    @classmethod
    def of(cls, network: str, data: SupervisedData, settings: TeacherSettings) -> Recipe:
        """What training ``network`` on ``data`` with these settings depends on."""
        cut = settings.augment and augmentation_for(data.train.items, mirror=data.mirror) is CROPS
        return cls(
            checksum(data.train.items, data.train.labels),
            network,
            settings.epochs,
            settings.batch,
            settings.learning_rate,
            settings.weight_decay,
            settings.augment,
            settings.loop.precision,
            settings.seed,
            repr(CROPS) if cut else None,
        )

    @property
    def name(self) -> str:
        """``<network>-<hash>``, the stem of its files."""
        text = json.dumps({key: value for key, value in asdict(self).items() if value is not None}, sort_keys=True)
        return f"{self.network}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make_network(name: str, items: LabelledItems, seed: int) -> nn.Sequential:
    """An untrained network for images of these classes, which standardises them by these images.

    Raises:
        UserError: an unknown network, or one that cannot take the images.
    """
    try:
        with seeded(seed):
            network = build_network(name, tuple(items.items.shape[1:]), items.num_classes)
    except ValueError as error:
        raise UserError(str(error)) from None
    if isinstance(network[0], Standardize):
        network[0].fit(items.items)
    return network


def starting_network(name: str, weights: str | None, data: SupervisedData, seed: int, outputs: int | None = None) -> nn.Module:
    """The network with the ``weights`` where given, else untrained.

    Args:
        name: of the network.
        weights: see :func:`~models.networks.classifiers.pretrained_network`.
        data: what it is for.
        seed: of an untrained one.
        outputs: of the last layer, where it may be a new one.

    Raises:
        UserError: see :func:`make_network` and :func:`~models.networks.classifiers.pretrained_network`.
    """
    if weights is not None:
        return pretrained_network(name, weights, data.item_shape, outputs)
    return make_network(name, data.train, seed)


def trained_network(
    network: nn.Module, name: str, data: SupervisedData, settings: TeacherSettings, run: RunFolder
) -> nn.Module:
    """``network``, untrained so far, trained on ``data``: in this run before, by any run that left it in the cache, or now. The
    run folder keeps a copy, ``checkpoints/teacher-<recipe>.safetensors``.

    Raises:
        UserError: a damaged file, or a loss that is not finite.
    """
    recipe = Recipe.of(name, data, settings)
    stage = f"teacher-{recipe.name}"
    own, cached = run.checkpoints / f"{stage}.safetensors", settings.cache / f"{recipe.name}.safetensors"
    if own.exists():
        load_network(network, own)  # the run's manifest knows it
    elif cached.exists():
        print(f"{name}: read from {cached}")
        load_network(network, cached)
    else:
        print(f"{name}: training for {plural(settings.epochs, 'epoch')} on {len(data.train)} images of {data.name}")
        augmentation = augmentation_for(data.train.items, mirror=data.mirror) if settings.augment else None
        schedule = settings.schedule(len(data.train))
        train_classifier(
            network, data.train, schedule, settings.loop, run, stage, augmentation=augmentation, seed=settings.seed
        )
    state = network.state_dict()
    meaning = asdict(recipe) | {CHECKSUM: checksum(*state.values())}
    if not own.exists():
        save_tensors(own, state, meaning)
    if not cached.exists():
        with sole_writer(settings.cache, cached.name):
            save_tensors(cached, state, meaning)
    return as_trained(network)


def checksum(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' bytes, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def student_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's weights alone, where ``state`` is a :class:`~models.distillation.model.DistillationModel`'s."""
    own = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return own or state


def load_network(network: nn.Module, path: Path) -> None:
    """Put a file's weights into ``network``: its own, or those it had as a student; it is left in evaluation mode.

    Raises:
        UserError: the file is damaged, or another network's.
    """
    tensors, metadata = load_tensors(path)
    try:
        network.eval().load_state_dict(student_part(tensors))
    except RuntimeError as error:
        raise UserError(f"{path} belongs to another network: {str(error).splitlines()[-1].strip()}") from None
    if (known := metadata.get(CHECKSUM)) is not None and known != checksum(*network.state_dict().values()):
        raise UserError(f"{path} is damaged: delete it, to train the network anew")


def replace_head(network: nn.Module, outputs: int) -> nn.Module:
    """Put a new last linear layer with ``outputs`` units into ``network``; the rest keeps its weights.

    Raises:
        UserError: there is no linear layer.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError("the pre-trained network has no linear layer to replace")
    parent, _, child = linear[-1].rpartition(".")
    old = network.get_submodule(linear[-1])
    setattr(network.get_submodule(parent), child, nn.Linear(old.in_features, outputs))  # type: ignore[arg-type]
    return network
