"""Teachers, and the weights that finetuned students start from: trained once and kept, or read from files."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, load_tensors, save_tensors
from inference.vid.options import VidOptions
from inference.vid.vid import fit_student
from models.networks.backbones import RepeatChannels, Standardize
from models.networks.classifiers import build_network

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """Everything a trained network depends on; its hash names the cached file.

    Attributes:
        data: checksum of the training images and labels.
        network, epochs, batch, learning_rate, weight_decay, augment, precision, seed: as in the options.
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

    @classmethod
    def of(cls, network: str, data: SupervisedData, options: VidOptions) -> Recipe:
        """What training ``network`` on ``data`` with these options depends on."""
        return cls(
            checksum(data.train.items, data.train.labels),
            network,
            options.epochs,
            options.batch,
            options.learning_rate,
            options.weight_decay,
            options.augment,
            options.precision,
            options.seed,
        )

    @property
    def file(self) -> str:
        """``<network>-<hash>.safetensors``"""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.network}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


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


def starting_network(name: str, weights: str | None, data: SupervisedData, options: VidOptions) -> nn.Module:
    """The network with the ``weights`` where given, else untrained.

    Raises:
        UserError: see :func:`make_network` and :func:`pretrained_network`.
    """
    if weights is not None:
        return pretrained_network(name, weights, data.item_shape)
    return make_network(name, data.train, options.seed)


def trained_network(name: str, weights: str | None, data: SupervisedData, options: VidOptions, run: RunFolder) -> nn.Module:
    """A network for ``data``: from ``weights`` where given, from the cache where the same was trained before, or trained now.

    Raises:
        UserError: see :func:`starting_network`.
    """
    network = starting_network(name, weights, data, options)
    if weights is not None:
        return network
    recipe = Recipe.of(name, data, options)
    cached = Path(options.cache) / recipe.file
    if cached.exists():
        print(f"{name}: read from {cached}")
        load_state(network, cached)
        return network
    print(f"{name}: training for {options.epochs} epochs on {len(data.train)} images of {data.name}")
    steps = max(1, len(data.train) // options.batch)
    fit_student(
        network, network, data.train, options, run, f"teacher-{recipe.file.split('.')[0]}", mirror=data.mirror,
        updates=options.epochs * steps,
    )  # fmt: skip
    save_tensors(cached, network.state_dict(), asdict(recipe))
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
        weights: a safetensors file of such a network (a run's or the cache's), a state dict of torchvision's model of this
            name, or the name of torchvision's weights, which are downloaded. torchvision's models see images standardised as
            for ImageNet.

    Raises:
        UserError: no such file or weights, or they are another network's.
    """
    path = Path(weights)
    if not path.is_file():
        return imagenet_input(download(name, weights), image_shape)
    state = read_state(path)
    outputs = [len(value) for key, value in state.items() if key.endswith("weight") and value.dim() == 2]
    if not outputs:
        raise UserError(f"{path} has no linear layer: it is no classifier's state dict")
    try:
        if next(iter(state)).split(".")[0].isdecimal():  # ours is a Sequential
            network: nn.Module = build_network(name, image_shape, outputs[-1])
            network.load_state_dict(state)
            return network
        from torchvision.models import get_model

        raw = get_model(name, weights=None, num_classes=outputs[-1])
        raw.load_state_dict(state)
        return imagenet_input(raw, image_shape)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        raise UserError(f"{path} does not fit {name}: {lines[min(1, len(lines) - 1)].strip()[:160]}") from None


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
    from torchvision.models import get_model, get_model_weights

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
