"""Drawn letters with attributes that are known: ink, slant and stroke for ambiguous tasks, and angles for regression.

Letters of training, validation and test are of different scripts, see :mod:`data.sources.glyphs`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.augmentation import Warp, affine_maps
from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems
from data.memory import check_images
from data.seeding import mix_seed
from data.sources.glyphs import draw_alphabet

ATTRIBUTES = (("dark", "bright"), ("left", "right"), ("thin", "thick"))
"""Ink, slant and stroke: what a letter without each attribute, and with it, is called; bit a of its class is attribute a."""
SLANT, STROKE = 0.5, 5  # horizontal shear; pixels of a master that a stroke is widened to
HAND, STILL = Warp(rotation=6, scale=(1.0, 1.3), shift=0.05), Warp(scale=(1.0, 1.3), shift=0.05)
"""How a letter differs from the same one beside it, and where its angle is what is asked for."""
CONTRAST, NOISE = (0.5, 0.8), 0.1
LARGEST = math.pi / 2
"""Of the angles that letters are turned by, on both sides of how they lie; radians."""


class PosedGlyphs(NamedTuple):
    """Turned letters.

    Attributes:
        source: pictures and letters.
        targets: ``[n]``, the angle by which each letter is turned counterclockwise from how it lies, radians.
        lies: ``[letters]``, how each letter lies, radians from upright; who is to find it in a picture is not told.
    """

    source: LabelledItems
    targets: Tensor
    lies: Tensor


def load_attributed_glyphs(image_size: int = 28, *, images: int = 200, seed: int = 0) -> ImageSplits:
    """Letters that are bright or dark, lean right or left, and are thick or thin: eight classes in each split, of different
    letters, for :class:`~data.ambiguous.AttributeSampler`.

    Args:
        images: of each class.

    Returns:
        Grayscale images ``[8 · images, 1, image_size, image_size]`` uint8, with :data:`ATTRIBUTES` in the classes' names.

    Raises:
        UserError: an image size below 16.
    """
    kinds = torch.arange(2 ** len(ATTRIBUTES))
    bits = kinds[:, None] >> torch.arange(len(ATTRIBUTES)) & 1  # [8, attributes]
    words = [" ".join(words[b] for words, b in zip(ATTRIBUTES, row, strict=True)) for row in bits.tolist()]
    parts = {}
    for split, letters in draw_alphabet().items():
        generator = generator_of(seed, split)
        masters = torch.cat(list(letters.values()))[:, None]
        labels = kinds.repeat_interleave(images)
        bright, right, thick = bits[labels].mT
        drawing = masters[torch.randint(len(masters), labels.shape, generator=generator)]
        drawing = torch.where(thick[:, None, None, None] == 1, F.max_pool2d(drawing, STROKE, 1, STROKE // 2), drawing)
        slant = torch.eye(2).repeat(len(labels), 1, 1)
        slant[:, 0, 1] = SLANT * (2 * right - 1)
        pictures = picture(drawing, slant, 2 * bright - 1, image_size, HAND, generator)
        parts[split] = LabelledItems(pictures, labels, tuple(f"{split} {name}" for name in words))
    return ImageSplits("glyph-attributes", parts["train"], parts["val"], parts["test"], mirror=False)


def load_posed_glyphs(
    split: str, image_size: int = 28, *, images: int = 40, max_letters: int = 240, seed: int = 0
) -> PosedGlyphs:
    """Letters that are turned by an angle of ±90° from how each of them lies, a secret of the letter.

    A network that knows a letter knows how it lies, and tells the angle without a support; of a new letter it cannot. In this
    it is the pose problem of Yin et al. 2020, "Meta-learning without memorization", with letters in the place of objects.

    Args:
        split: whose letters: train, val or test.
        images: of each letter.
        max_letters: letters kept, chosen by ``seed``.

    Returns:
        Grayscale images ``[letters · images, 1, image_size, image_size]`` uint8 with their angles.

    Raises:
        UserError: an image size below 16.
    """
    letters, generator = draw_alphabet()[split], generator_of(seed, split)
    names = sorted(letters)
    kept = torch.randperm(len(names), generator=generator)[:max_letters].sort().values.tolist()
    names = [names[i] for i in kept]
    lies = 2 * math.pi * torch.rand(len(names), generator=generator)
    labels = torch.arange(len(names)).repeat_interleave(images)
    targets = LARGEST * (2 * torch.rand(len(labels), generator=generator) - 1)
    drawing = torch.cat([letters[name][:1] for name in names])[labels, None]  # one face: others are slanted
    shape = turned(targets + lies[labels])
    pictures = picture(drawing, shape, torch.ones(len(labels)), image_size, STILL, generator)
    return PosedGlyphs(LabelledItems(pictures, labels, tuple(names)), targets, lies)


def generator_of(seed: int, split: str) -> torch.Generator:
    """One of its own for each ``split``."""
    return torch.Generator().manual_seed(mix_seed(seed, SPLITS.index(split)))


def turned(angle: Tensor) -> Tensor:
    """Maps from places in a picture to places in a drawing that is turned counterclockwise by an ``angle``, radians:
    ``[n] -> [n, 2, 2]``; places count rows downwards."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def picture(drawing: Tensor, shape: Tensor, ink: Tensor, image_size: int, ranges: Warp, generator: torch.Generator) -> Tensor:
    """Noisy pictures of drawings, each a little different: ``[n, 1, image_size, image_size]`` uint8.

    Args:
        drawing: ``[n, 1, height, width]`` in [0, 1].
        shape: ``[n, 2, 2]``, from places in the picture to places in the drawing.
        ink: ``[n]``, 1 where it is bright on dark paper, −1 where it is dark on bright.
        ranges: of a map of its own for each.

    Raises:
        UserError: an image size below 16.
    """
    if image_size < 16:
        raise UserError(f"image size {image_size} is too small for letters: use at least 16")
    count = len(drawing)
    check_images(count, image_size, channels=4)  # floats
    hand = affine_maps(count, ranges, generator)
    maps = torch.cat([shape @ hand[..., :2], hand[..., 2:]], dim=-1)
    grid = F.affine_grid(maps, [count, 1, 2 * image_size, 2 * image_size], align_corners=False)
    drawn = F.avg_pool2d(F.grid_sample(drawing, grid, align_corners=False), 2)
    low, high = CONTRAST
    contrast = ink[:, None, None, None] * (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator))
    noise = NOISE * torch.randn(drawn.shape, generator=generator)
    return (0.5 + contrast * (drawn - 0.5) + noise).mul_(255).clamp_(0, 255).to(torch.uint8)
