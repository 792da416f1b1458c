"""Ordinary networks by name, for classification of images and regression."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from torch import nn

from models.networks.backbones import Standardize, build_backbone


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
        ValueError: unknown name, or items the network cannot take.
    """
    is_image = len(item_shape) == 3
    start: list[nn.Module] = [Standardize(item_shape[0])] if is_image else []
    if wide := re.fullmatch(r"mlp-(\d+)", name):
        name, hidden = "mlp", 4 * (int(wide[1]),)
    if name == "mlp":
        activation = nn.ReLU if is_image else nn.Tanh  # smooth functions for regression
        return nn.Sequential(*start, nn.Flatten(), *mlp(math.prod(item_shape), hidden, outputs, activation))
    if not is_image:
        raise ValueError(f"{name} needs images; for inputs of shape {item_shape} choose mlp")
    if name == "lenet":
        return nn.Sequential(*start, *lenet(item_shape, outputs))
    backbone = build_backbone(name, item_shape)
    return nn.Sequential(*start, backbone, nn.Linear(int(backbone.num_features), outputs))  # type: ignore[arg-type]


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
