"""Feature networks f(x), and the cosine classifier they are pre-trained with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg11_bn

from models.networks.layers import evaluating
from models.networks.libraries import did_you_mean, find_library, torchvision_names


class Backbone(StrEnum):
    """Named feature networks; ``conv4-w`` and ``wrn-d-k`` of other sizes are built too, and other names are looked up in
    ``torchvision.models`` and timm."""

    CONV4_64 = "conv4-64"
    """Four 3×3 convolutions of 64 channels, each with batch norm, ReLU and a 2×2 max-pool."""
    CONV4_128 = "conv4-128"
    """The same with 64, 64, 128 and 128 channels (Gidaris and Komodakis 2018, "C128F")."""
    WRN_28_10 = "wrn-28-10"
    """Wide residual network, depth 28, width 10 (Zagoruyko and Komodakis 2016)."""
    PIXELS = "pixels"
    """No network: the pixels themselves, in one row."""
    VGG9 = "vgg9"
    """The eight 3×3 convolutions of VGG-11 (Simonyan and Zisserman 2015, table 1, A) with batch norm, five max-pools and global
    averaging; with the classifier nine layers."""


def build_backbone(name: str, image_shape: tuple[int, ...]) -> nn.Module:
    """A feature network for images of ``image_shape`` (channels, height, width).

    Args:
        name: a :class:`Backbone`, ``conv4-w``, ``wrn-d-k``, or a classification model of ``torchvision.models`` or timm such
            as ``resnet18`` (its last layer is removed; weights are random). ``timm:resnet18`` is timm's in any case.

    Returns:
        A module from float images ``[n, *image_shape]`` to features ``[n, num_features]`` with an int attribute
        ``num_features``.

    Raises:
        ValueError: an unknown name, a width of 0, or images too small for the network.
    """
    channels, height, width = image_shape
    if conv := re.fullmatch(r"conv4-(\d+)", name):
        if min(height, width) < 16:
            raise ValueError(f"{name} needs images of at least 16×16 pixels, not {height}×{width}")
        widths = (64, 64, 128, 128) if name == Backbone.CONV4_128 else 4 * (as_width(conv[1], name),)
        return Conv4(channels, widths, height, width)
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        return WideResNet(channels, depth=int(wide[1]), width=as_width(wide[2], name), stem_stride=2 if height > 48 else 1)
    if name == Backbone.PIXELS:
        return Pixels(image_shape)
    if name == Backbone.VGG9:
        if min(height, width) < 32:
            raise ValueError(f"{name} needs images of at least 32×32 pixels, not {height}×{width}")
        return vgg9(channels)
    return library_backbone(name, image_shape)


def as_width(digits: str, name: str) -> int:
    """The width, in ``digits``, that a network's ``name`` ends with.

    Raises:
        ValueError: it is 0.
    """
    if not int(digits):
        raise ValueError(f"{name} has no units: give a width of 1 or more")
    return int(digits)


class Pixels(nn.Flatten):
    """Images of ``image_shape`` as rows of numbers, ``[n, channels, height, width] -> [n, channels * height * width]``."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features = math.prod(image_shape)


class Conv4(nn.Sequential):
    """Four blocks of convolution, batch norm, ReLU and max-pool; features are the flattened last map.

    ``[n, channels, height, width] -> [n, widths[3] * (height // 16) * (width // 16)]``
    """

    def __init__(self, channels: int, widths: tuple[int, ...], height: int, width: int) -> None:
        blocks: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths[:-1]), widths, strict=True):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            blocks += [nn.MaxPool2d(2), nn.ReLU()]  # the two commute; pooling first is cheaper
        super().__init__(*blocks, nn.Flatten())
        self.num_features = widths[-1] * (height // 16) * (width // 16)
        init_convolutions(self)


class WideResNet(nn.Module):
    """WRN-depth-width with pre-activation blocks and global average pooling.

    Source: Zagoruyko and Komodakis 2016, table 1. ``stem_stride`` 2 makes the first group halve the resolution, as is
    usual for 84×84 images; ``channels`` of the images.

    Raises:
        ValueError: a ``depth`` other than 6 n + 4, or above 1000.
    """

    def __init__(self, channels: int = 3, *, depth: int = 28, width: int = 10, stem_stride: int = 1) -> None:
        super().__init__()
        if not 10 <= depth <= 1000 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has depth 6 n + 4 up to 1000, not {depth}")
        widths = (16 * width, 32 * width, 64 * width)
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.groups = nn.Sequential()
        for inputs, outputs, stride in zip((16, *widths), widths, (stem_stride, 2, 2), strict=False):
            later = [PreActivationBlock(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
            self.groups.append(nn.Sequential(PreActivationBlock(inputs, outputs, stride), *later))
        self.num_features = widths[-1]
        self.norm = nn.BatchNorm2d(self.num_features)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.groups(self.stem(images))))
        return maps.mean(dim=(-2, -1))


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU, 3×3 convolution, twice, beside a shortcut (1×1 where the shape changes), from
    ``inputs`` to ``outputs`` channels; ``stride`` of the first convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = F.relu(self.norm1(maps))
        residual = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return residual + (maps if self.shortcut is None else self.shortcut(active))


def vgg9(channels: int) -> nn.Module:
    """torchvision's VGG-11 with batch norm up to its last max-pool, then global averaging; see :class:`Backbone`."""
    start = [RepeatChannels(3)] if channels == 1 else []
    network = nn.Sequential(*start, vgg11_bn(weights=None).features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.num_features = 512  # type: ignore[assignment]
    return network


def library_backbone(name: str, image_shape: tuple[int, ...]) -> nn.Module:
    """A network of torchvision or timm without its last layer; grayscale images are shown to it as colour ones.

    Raises:
        ValueError: an unknown name, a network without a last linear layer, or images that it cannot take.
    """
    found = find_library(name)
    if found is None:
        named = ", ".join(backbone.value for backbone in Backbone)
        raise ValueError(
            f"unknown network {name!r}{did_you_mean(name, [*Backbone, *torchvision_names()]) or ':'}"
            f" choose {named}, conv4-w, wrn-d-k, a classification model of torchvision.models or (where it is installed)"
            " timm, or, outside few-shot learning, mlp, mlp-h or lenet"
        )
    library, inner = found
    network = library.features(inner)
    network = nn.Sequential(RepeatChannels(3), network) if image_shape[0] == 1 else network
    network.num_features = count_features(network, image_shape, name)  # type: ignore[assignment]
    return network


@torch.no_grad()
def count_features(network: nn.Module, image_shape: tuple[int, ...], name: str) -> int:
    """D of the features ``[n, D]``, found by a dry run of two blank images; modes, weights and statistics stay as they are.

    Raises:
        ValueError: the network fails on such images, or gives something else than ``[n, D]``.
    """
    first = next(network.parameters(), torch.zeros(()))
    images = torch.zeros(2, *image_shape, device=first.device, dtype=first.dtype)
    size = "×".join(map(str, image_shape))
    try:
        with evaluating(network):
            features = network(images)
    except Exception as error:  # whatever a network of someone else's raises
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{name} fails on blank images of {size} (channels×height×width): {reason}") from error
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        given = "×".join(map(str, features.shape)) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{name} must give one vector per image: two images of {size} came out as {given}, not 2×D")
    return features.shape[-1]


class RepeatChannels(nn.Module):
    """Shows a grayscale image to a network that expects colour."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, self.channels, -1, -1)


class CosineClassifier(nn.Module):
    """logits = scale · cos(f, w), the classifier of pre-training.

    Source: Gidaris and Komodakis 2018, section 3.2; Chen et al. 2019.

    Args:
        num_features: D.
        num_classes: number of base classes.
        scale: initial inverse temperature; learned.
    """

    def __init__(self, num_features: int, num_classes: int, *, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features) / num_features**0.5)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """``[n, D] -> [n, classes]``"""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class Standardize(nn.Module):
    """uint8 images, or floats in [0, 1], to zero mean and unit variance per channel by the training images' statistics."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Standardize:
        """With a known ``mean`` and ``std`` of each channel, for pixels in [0, 1]. Grayscale images come out with as many
        channels as these have."""
        made = cls(len(mean))
        made.mean.copy_(torch.tensor(mean)[:, None, None])
        made.std.copy_(torch.tensor(std)[:, None, None])
        return made

    def fit(self, images: Tensor) -> Standardize:
        """Take the statistics of uint8 ``images`` ``[n, channels, height, width]`` (a thousand are enough)."""
        sample = images[:: max(1, len(images) // 1000)].float().div_(255)
        self.mean.copy_(sample.mean(dim=(0, 2, 3))[:, None, None])
        self.std.copy_(sample.std(dim=(0, 2, 3)).clamp_min(1e-3)[:, None, None])
        return self

    def forward(self, images: Tensor) -> Tensor:
        values = images.to(self.mean.dtype)
        scaled = values / 255 if images.dtype == torch.uint8 else values
        return (scaled - self.mean) / self.std


def init_convolutions(network: nn.Module) -> None:
    """He initialisation by fan-out, as is usual for these networks."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
