"""Random image warps and colours, a whole batch at a time with its own draw for every image.

A process that has some rows of a batch (:func:`~data.seeding.part_of_batch`) draws for them what one process would have drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from data.seeding import draw_part


@dataclass(frozen=True)
class Warp:
    """Ranges of a random affine map; every number is drawn uniformly for each image.

    Args:
        rotation: largest angle, degrees.
        scale: smallest and largest size of the object.
        shear: largest horizontal shear, a fraction of the height.
        shift: largest translation, a fraction of the image.
        mirror: flip horizontally with probability ½.
    """

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    shift: float = 0.0
    mirror: bool = False


@dataclass(frozen=True)
class Augmentation:
    """The usual augmentation of a pre-training batch.

    Args:
        warp: geometry.
        brightness, contrast, saturation: largest relative change of each.
    """

    warp: Warp = Warp()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, images: Tensor, *, seed: int) -> Tensor:
        """Augment uint8 ``[n, channels, height, width]`` images; the result is uint8 of the same shape."""
        generator = torch.Generator().manual_seed(seed)
        changed = warp(images.float(), affine_maps(len(images), self.warp, generator).to(images.device))
        changed = jitter(changed, self, generator)
        return changed.round_().clamp_(0, 255).to(torch.uint8)


PHOTOGRAPHS = Augmentation(Warp(rotation=8, scale=(0.95, 1.5), shift=0.12, mirror=True))
"""Random crops, small rotations and mirror images; colour changes did not help small images."""

LETTERS = Augmentation(Warp(rotation=10, scale=(0.85, 1.15), shear=0.1, shift=0.06))
"""Small affine changes; letters are never mirrored."""


@dataclass(frozen=True)
class Crops:
    """Each image cut anew from its zero-padded self, by whole pixels, and mirrored: the augmentation that is usual for CIFAR.

    Source: He et al. 2016, section 4.2 (4 pixels of padding for 32×32).

    Args:
        shift: largest shift, a fraction of the height and of the width; rounded to pixels.
        mirror: flip horizontally with probability ½.
    """

    shift: float = 0.125
    mirror: bool = True

    def __call__(self, images: Tensor, *, seed: int) -> Tensor:
        """Augment ``[n, channels, height, width]`` images of any dtype; each keeps the values of its pixels."""
        generator = torch.Generator().manual_seed(seed)
        count, _, height, width = images.shape
        down, right = round(self.shift * height), round(self.shift * width)
        below, beside = (
            draw_part(partial(torch.randint, 2 * most + 1, generator=generator), (count, 1), 0) for most in (down, right)
        )
        rows, columns = below + torch.arange(height), beside + torch.arange(width)
        if self.mirror:
            mirrored = draw_part(partial(torch.rand, generator=generator), (count, 1), 0) < 0.5
            columns = torch.where(mirrored, columns.flip(-1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = F.pad(images, (right, right, down, down))
        item = torch.arange(count, device=images.device)[:, None, None]
        cut = padded.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]]  # [n, height, width, channels]
        return cut.permute(0, 3, 1, 2).contiguous()


CROPS = Crops()
"""Shifts by up to an eighth and mirror images."""


def augmentation_for(items: Tensor, *, mirror: bool) -> Augmentation | Crops | None:
    """What a network learns ``items`` with: :data:`CROPS` where mirror images still belong to their class (photographs),
    :data:`LETTERS` where not, and nothing where they are no uint8 images ``[n, channels, height, width]``."""
    if items.dtype != torch.uint8 or items.dim() != 4:
        return None
    return CROPS if mirror else LETTERS


def affine_maps(count: int, ranges: Warp, generator: torch.Generator) -> Tensor:
    """``[count, 2, 3]`` maps from output to input coordinates, as ``F.affine_grid`` takes them."""
    draw = 2 * draw_part(partial(torch.rand, generator=generator), (6, count), 1) - 1
    angle = math.radians(ranges.rotation) * draw[0]
    low, high = ranges.scale
    zoom = 1 / (low + (high - low) * (draw[1] + 1) / 2)
    flip = torch.where(draw[5] < 0, -1.0, 1.0) if ranges.mirror else torch.ones(count)
    cos, sin, shear = zoom * angle.cos(), zoom * angle.sin(), ranges.shear * draw[2]
    rows = [torch.stack([flip * cos, shear * cos - sin, 2 * ranges.shift * draw[3]], dim=-1)]
    rows += [torch.stack([flip * sin, shear * sin + cos, 2 * ranges.shift * draw[4]], dim=-1)]
    return torch.stack(rows, dim=1)


def warp(images: Tensor, maps: Tensor, *, padding: str = "reflection") -> Tensor:
    """Apply one affine map to each of ``[n, channels, height, width]`` float images, bilinearly; ``padding`` as in
    :func:`torch.nn.functional.grid_sample`."""
    grid = F.affine_grid(maps.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def jitter(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and (with three channels) saturation of each image ``[n, channels, height,
    width]`` by a random factor."""

    def factor(limit: float) -> Tensor:
        draw = 2 * draw_part(partial(torch.rand, generator=generator), (len(images), 1, 1, 1), 0) - 1
        return (1 + limit * draw).to(images.device)

    if strength.brightness:
        images = images * factor(strength.brightness)
    if strength.contrast:
        images = torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, factor(strength.contrast))
    if strength.saturation and images.shape[1] == 3:
        images = torch.lerp(images.mean(dim=1, keepdim=True), images, factor(strength.saturation))
    return images
