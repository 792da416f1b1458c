"""Ordinary networks by name, for classification of images and regression."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.errors import UserError
from models.networks.backbones import Standardize, as_width, build_backbone
from models.networks.feature_network import FeatureNetwork
from models.networks.pretrained import load_exactly, read_file, tables


def build_network(name: str, item_shape: tuple[int, ...], outputs: int, *, hidden: Sequence[int] = (400, 400)) -> nn.Sequential:
    """A network from items to ``[n, outputs]``; images (uint8 or float) are standardised first.

    Args:
        name: ``mlp``, ``mlp-h`` (four hidden layers of h units), ``lenet``, or a name of
            :func:`~models.networks.backbones.build_backbone`, which gets a linear layer on top: ``wrn-16-1``, ``conv4-64``,
            ``vgg9``, ``resnet18``.
        item_shape: (channels, height, width) of images, or (features,).
        outputs: numbers per item.
        hidden: widths of ``mlp``.

    Raises:
        ValueError: unknown name, a width of 0, or items the network cannot take.
    """
    is_image = len(item_shape) == 3
    start: list[nn.Module] = [Standardize(item_shape[0])] if is_image else []
    if wide := re.fullmatch(r"mlp-(\d+)", name):
        name, hidden = "mlp", 4 * (as_width(wide[1], name),)
    if name == "mlp":
        activation = nn.ReLU if is_image else nn.Tanh  # smooth functions for regression
        return nn.Sequential(*start, nn.Flatten(), *mlp(math.prod(item_shape), hidden, outputs, activation))
    if not is_image:
        raise ValueError(f"{name} needs images; for inputs of shape {item_shape} choose mlp")
    if name == "lenet":
        return nn.Sequential(*start, *lenet(item_shape, outputs))
    backbone = build_backbone(name, item_shape)
    return nn.Sequential(*start, backbone, nn.Linear(int(backbone.num_features), outputs))  # type: ignore[arg-type]


def pretrained_network(name: str, weights: str, item_shape: tuple[int, ...], outputs: int | None = None) -> nn.Sequential:
    """A network with given weights, with the layers that :func:`build_network` gives it.

    Args:
        name: as for :func:`build_network`.
        weights: a file of such a network (from a run's checkpoints, students' included, or from the cache of teachers); or see
            :meth:`~models.networks.feature_network.FeatureNetwork.pretrained`, which says how images are standardised.
        item_shape: (channels, height, width) of images, or (features,). Grayscale images are shown to torchvision's and timm's
            networks as colour ones.
        outputs: numbers per item; a last layer that has another number of them, or is not among the weights, is a new one. When
            not given it must be among them.

    Raises:
        UserError: no such file or weights, a file that is damaged or another network's, or no last layer.
    """
    head: nn.Linear | None
    if Path(weights).is_file() and (state := own_state(read_file(Path(weights)))):
        start, head = own_network(name, state, item_shape, weights)
    elif len(item_shape) == 3 and name != "lenet" and not name.startswith("mlp"):
        size, channels = item_shape[-1], item_shape[0]
        features, head = FeatureNetwork.with_head(name, weights, image_size=size, channels=channels, mirror=False)
        start = [features.standardize, features.backbone]
        head = head or (None if outputs is None else nn.Linear(features.num_features, outputs))
    else:
        raise UserError(f"{weights} holds no weights of {name}: give a file of Sibyl's")
    if head is None:
        raise UserError(f"{weights} has no last layer, which gives the classes: give weights of {name} with one")
    if outputs not in (None, head.out_features):
        head = nn.Linear(head.in_features, outputs)
    return nn.Sequential(*start, head)


def own_state(content: Any) -> dict[str, Tensor]:
    """The state dict of a network of :func:`build_network`, also of one that was a student, in a file's ``content``; empty
    where there is none."""
    for table in tables(content):
        student = {key.removeprefix("student."): value for key, value in table.items() if key.startswith("student.")}
        if all(key.partition(".")[0].isdecimal() for key in (student or table)):
            return student or table
    return {}


def own_network(
    name: str, state: dict[str, Tensor], item_shape: tuple[int, ...], source: str
) -> tuple[list[nn.Module], nn.Linear]:
    """A network of :func:`build_network` with given weights: what comes before its last layer, and this.

    Args:
        name, item_shape: as there; images of one channel may have been shown to it as colour ones.
        state: its state dict, which says the number of outputs.
        source: what errors call the file.

    Raises:
        UserError: weights of another network.
    """
    matrices = [key for key, value in state.items() if key.endswith("weight") and value.dim() == 2]
    layers = sorted((int(key.partition(".")[0]), key) for key in matrices)
    if not layers:
        raise UserError(f"{source} has no linear layer: it is no classifier's state dict")
    if "0.mean" in state and len(item_shape) == 3:
        item_shape = (len(state["0.mean"]), *item_shape[1:])
    try:
        network = build_network(name, item_shape, len(state[layers[-1][1]]))
    except ValueError as error:
        raise UserError(str(error)) from None
    load_exactly(network, state, source, name)
    *start, head = network
    return start, head  # type: ignore[return-value]


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """Linear layers with an activation between them: ``inputs``, then the widths in ``hidden``, then ``outputs`` units."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise((inputs, *hidden)):
        layers += [nn.Linear(wide, narrow), activation()]
    return [*layers, nn.Linear((inputs, *hidden)[-1], outputs)]


def lenet(image_shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
    """LeNet-5 with ReLU and max-pooling. Source: LeCun et al. 1998, figure 2.

    Raises:
        ValueError: images smaller than 16×16.
    """
    channels, height, width = image_shape
    if min(height, width) < 16:
        raise ValueError(f"lenet needs images of at least 16×16 pixels, not {height}×{width}")
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return [
        *(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *mlp(features, (120, 84), outputs),
    ]
