"""Teachers, and the weights that finetuned students start from: trained once and kept, or read from files."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from data.augmentation import CROPS, augmentation_for
from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from inference.evaluation.tables import plural
from inference.runs.classifier import train_classifier
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors, save_tensors
from inference.runs.training import Loop
from inference.runs.updates import Schedule
from inference.vid.options import VidOptions
from models.networks.backbones import RepeatChannels, Standardize
from models.networks.classifiers import build_network

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def starting_network(name: str, weights: str | None, data: SupervisedData, seed: int) -> nn.Module:
    """The network with the ``weights`` where given, else untrained.

    Raises:
        UserError: see :func:`make_network` and :func:`pretrained_network`.
    """
    if weights is not None:
        return pretrained_network(name, weights, data.item_shape)
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
    if cached.exists():
        print(f"{name}: read from {cached}")
        load_network(network, cached)
    elif own.exists():
        load_network(network, own)
    else:
        print(f"{name}: training for {plural(settings.epochs, 'epoch')} on {len(data.train)} images of {data.name}")
        augmentation = augmentation_for(data.train.items, mirror=data.mirror) if settings.augment else None
        schedule = settings.schedule(len(data.train))
        train_classifier(
            network, data.train, schedule, settings.loop, run, stage, augmentation=augmentation, seed=settings.seed
        )
    for place in (cached, own):
        if not place.exists():
            save_tensors(place, network.state_dict(), asdict(recipe))
    return network


def checksum(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def pretrained_network(name: str, weights: str, image_shape: tuple[int, ...]) -> nn.Module:
    """A network with given weights, for images of ``image_shape``.

    Args:
        name: as for :func:`~models.networks.classifiers.build_network`.
        weights: a safetensors file of such a network (from a run's checkpoints, students' included, or from the cache), a state
            dict of torchvision's model of this name, or the name of torchvision's weights, which are downloaded. torchvision's
            models see images standardised as for ImageNet.

    Raises:
        UserError: no such file or weights, or they are another network's.
    """
    path = Path(weights)
    if not path.is_file():
        return imagenet_input(download(name, weights), image_shape)
    state = student_part(read_state(path))
    ours = all(key.split(".")[0].isdecimal() for key in state)  # a Sequential
    if ours:  # files have their tensors in the order of their names' letters
        state = dict(sorted(state.items(), key=lambda entry: int(entry[0].split(".")[0])))
    outputs = [len(value) for key, value in state.items() if key.endswith("weight") and value.dim() == 2]
    if not outputs:
        raise UserError(f"{path} has no linear layer: it is no classifier's state dict")
    try:
        if ours:
            network: nn.Module = build_network(name, image_shape, outputs[-1])
            network.load_state_dict(state)
            return network
        raw = get_model(name, weights=None, num_classes=outputs[-1])
        raw.load_state_dict(state)
        return imagenet_input(raw, image_shape)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        raise UserError(f"{path} does not fit {name}: {lines[min(1, len(lines) - 1)].strip()[:160]}") from None


def student_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's weights alone, where ``state`` is a :class:`~models.distillation.model.DistillationModel`'s."""
    own = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return own or state


def load_network(network: nn.Module, path: Path) -> None:
    """Put a file's weights into ``network``: its own, or those it had as a student; it is left in evaluation mode.

    Raises:
        UserError: the file is damaged, or another network's.
    """
    try:
        network.eval().load_state_dict(student_part(load_tensors(path)[0]))
    except RuntimeError as error:
        raise UserError(f"{path} belongs to another network: {str(error).splitlines()[-1].strip()}") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors or torch file; nothing else is unpickled.

    Raises:
        UserError: it is damaged or holds something else.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or no state dict: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict")
    return state


def download(name: str, weights: str) -> nn.Module:
    """torchvision's model with its weights by name.

    Raises:
        UserError: unknown names, or no network to download by.
    """
    try:
        known = list(get_model_weights(name).__members__)
    except ValueError:
        raise UserError(f"{weights} is no file, and torchvision has no model {name} with weights") from None
    if weights not in (*known, "DEFAULT"):
        raise UserError(f"{weights} is neither a file nor weights of {name}: torchvision has {', '.join(known)}")
    try:
        return get_model(name, weights=weights)
    except OSError as error:
        raise UserError(f"{name}'s weights {weights} cannot be downloaded ({error}): give a file instead") from error


def imagenet_input(network: nn.Module, image_shape: tuple[int, ...]) -> nn.Sequential:
    """uint8 images to what torchvision's weights expect: three channels, standardised as for ImageNet."""
    start = Standardize(3)
    start.mean.copy_(torch.tensor(IMAGENET_MEAN)[:, None, None])
    start.std.copy_(torch.tensor(IMAGENET_STD)[:, None, None])
    repeat = [RepeatChannels(3)] if image_shape[0] == 1 else []
    return nn.Sequential(*repeat, start, network)


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
