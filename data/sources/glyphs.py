"""The embedded data sets: letters of many scripts, digits and Latin capitals, from the fonts that matplotlib ships.

For few-shot tasks train, validation and test are different scripts, so a test letter is a class never seen. Letters that
look the same (Latin A, Greek Α, Cyrillic А) are one class, given to the first script that has it.
"""

from __future__ import annotations

import functools
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.augmentation import Warp, affine_maps, warp
from data.errors import UserError
from data.items import ImageSplits, LabelledItems, SupervisedData
from data.memory import check_images

SCRIPTS = {
    "train": ("CANADIAN SYLLABICS", "LATIN", "ARABIC", "TIFINAGH", "LAO"),
    "val": ("GREEK", "HEBREW", "NKO"),
    "test": ("CYRILLIC", "ARMENIAN", "GEORGIAN"),
}
"""First word(s) of the letters' Unicode names."""

FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif")
MASTER_SIZE = 64  # letters are drawn once at this size, then warped
MOST_CLASSES = 240  # of a split
ALIKE = 0.93  # correlation of two drawings above which they are one class


def load_glyphs(
    image_size: int = 28,
    *,
    images_per_class: int = 30,
    test_images_per_class: int = 60,
    max_classes: int = MOST_CLASSES,
    seed: int = 0,
    described: bool = False,
) -> ImageSplits:
    """Draw the data set; the same arguments give the same images.

    Args:
        image_size: height and width in pixels.
        images_per_class: images of each training and validation letter.
        test_images_per_class: images of each test letter, at least ``images_per_class``; 60 serve the imbalanced tasks of
            75 queries, where one class may ask for most of them.
        max_classes: letters kept of each split, chosen by ``seed``.
        seed: draws faces, warps, holes and noise.
        described: whether each letter has one image more, its first: a description of it, upright, clean and whole, in a face
            that none of its other images has. It is the support of tasks of :class:`~data.episodes.TaskSpec` with
            ``described``. Letters in one face alone are then left out.

    Returns:
        Grayscale images ``[n, 1, image_size, image_size]`` uint8.

    Raises:
        UserError: an image size below 16.
    """
    if image_size < 16:
        raise UserError(f"image size {image_size} is too small for letters: use at least 16")
    check_images(max_classes * images_per_class, image_size)
    alphabet = draw_alphabet()
    parts = {}
    for index, (split, letters) in enumerate(alphabet.items()):
        generator = torch.Generator().manual_seed(seed * len(alphabet) + index)
        names = usable(letters, described)
        keep = torch.randperm(len(names), generator=generator)[:max_classes].sort().values.tolist()
        names = [names[i] for i in keep]
        known = {name: letters[name][: len(letters[name]) - described] for name in names}
        images = torch.stack([render(known[name], images_per_class, image_size, generator) for name in names])
        if split == "test" and test_images_per_class > images_per_class:  # drawn behind: the first ones stay
            more = test_images_per_class - images_per_class
            others = torch.stack([render(known[name], more, image_size, generator) for name in names])
            images = torch.cat([images, others], dim=1)
        if described:
            first = torch.stack([render(letters[name][-1:], 1, image_size, generator, CLEAN) for name in names])
            images = torch.cat([first, images], dim=1)
        labels = torch.arange(len(names)).repeat_interleave(images.shape[1])
        parts[split] = LabelledItems(images.flatten(0, 1), labels, tuple(names))
    name = "glyph-descriptions" if described else "glyphs"
    return ImageSplits(name, parts["train"], parts["val"], parts["test"], mirror=False)


def usable(letters: Mapping[str, Tensor], described: bool) -> list[str]:
    """Names of the ``letters`` that can be a class: where classes are ``described``, those in two faces or more."""
    return sorted(name for name, faces in letters.items() if len(faces) > described)


def glyph_classes(described: bool = False) -> dict[str, int]:
    """How many classes each split of :func:`load_glyphs` has, known before any image is drawn.

    Args:
        described: as there.
    """
    return {split: min(MOST_CLASSES, len(usable(letters, described))) for split, letters in draw_alphabet().items()}


@functools.cache
def draw_alphabet() -> dict[str, dict[str, Tensor]]:
    """split -> letter name -> ``[faces, MASTER_SIZE, MASTER_SIZE]`` drawings, look-alikes removed."""
    fonts = load_fonts()
    seen: list[Tensor] = []
    alphabet: dict[str, dict[str, Tensor]] = {}
    for split, scripts in SCRIPTS.items():
        alphabet[split] = {}
        for letter in letters_of(scripts):
            drawings = [drawing for font in fonts if (drawing := draw_letter(letter, *font)) is not None]
            if not drawings:
                continue
            signature = look(drawings[0])
            if seen and float((torch.stack(seen) @ signature).max()) > ALIKE:
                continue
            seen.append(signature)
            alphabet[split][unicodedata.name(letter)] = torch.stack(drawings)
    return alphabet


def load_fonts() -> list[tuple[ImageFont.FreeTypeFont, bytes]]:
    """Every face with the mark it shows for a letter it lacks."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [ImageFont.truetype(str(folder / f"{face}.ttf"), MASTER_SIZE * 5 // 8) for face in FACES]
    return [(face, bytes(face.getmask("\uffff"))) for face in faces]


def draw_letters(characters: str) -> dict[str, Tensor]:
    """Character -> ``[faces, MASTER_SIZE, MASTER_SIZE]`` drawings, for characters that every face has."""
    fonts = load_fonts()
    return {c: torch.stack([d for font in fonts if (d := draw_letter(c, *font)) is not None]) for c in characters}


def letters_of(scripts: tuple[str, ...]) -> list[str]:
    """Base letters, upper and lower case, of the named scripts, in Unicode order."""
    found = []
    for code in range(0x41, 0x2E00):
        letter = chr(code)
        is_base_letter = unicodedata.category(letter) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(letter)
        if is_base_letter and unicodedata.name(letter, "").startswith(scripts):
            found.append(letter)
    return found


def draw_letter(letter: str, font: ImageFont.FreeTypeFont, missing: bytes) -> Tensor | None:
    """The letter's ink, centred, in ``[0, 1]``; ``None`` where the font shows its ``missing`` mark instead."""
    if bytes(font.getmask(letter)) == missing:
        return None
    canvas = Image.new("L", (MASTER_SIZE, MASTER_SIZE))
    ImageDraw.Draw(canvas).text((MASTER_SIZE / 2, MASTER_SIZE / 2), letter, fill=255, font=font, anchor="mm")
    box = canvas.getbbox()
    if box is None:
        return None
    centred = Image.new("L", (MASTER_SIZE, MASTER_SIZE))
    ink = canvas.crop(box)
    centred.paste(ink, ((MASTER_SIZE - ink.width) // 2, (MASTER_SIZE - ink.height) // 2))
    return torch.from_numpy(np.array(centred, dtype=np.float32)) / 255


def look(drawing: Tensor) -> Tensor:
    """``[256]`` unit vector of the drawing scaled to its bounding box: equal for letters that look the same."""
    rows, columns = drawing.any(1).nonzero()[:, 0], drawing.any(0).nonzero()[:, 0]
    ink = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = F.adaptive_avg_pool2d(ink[None, None], 16).flatten()
    return F.normalize(small - small.mean(), dim=0)


HARD_WARP = Warp(rotation=18, scale=(0.95, 1.5), shear=0.2, shift=0.07)


@dataclass(frozen=True)
class Degradation:
    """What makes a drawn letter hard to read.

    Args:
        warp: ranges of the random affine map.
        hole: side of a square that is blanked out, a fraction of the image.
        noise: standard deviation of the pixels' noise; ink on paper is at most 0.7.
    """

    warp: Warp = HARD_WARP
    hole: float = 0.25
    noise: float = 0.18


HARD, MILD = Degradation(), Degradation(Warp(rotation=12, scale=(1.0, 1.4), shear=0.1, shift=0.04), hole=0.0, noise=0.12)
CLEAN = Degradation(Warp(scale=(1.2, 1.2)), hole=0.0, noise=0.0)


def render(
    drawings: Tensor, count: int, image_size: int, generator: torch.Generator, degradation: Degradation = HARD
) -> Tensor:
    """``count`` pictures of one letter: random face, affine map, hole and noise.

    Returns:
        ``[count, 1, image_size, image_size]`` uint8.
    """
    face = torch.randint(len(drawings), (count,), generator=generator)
    maps = affine_maps(count, degradation.warp, generator)
    ink = warp(drawings[face, None], maps, padding="zeros")
    ink = F.interpolate(ink, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)
    hole = int(degradation.hole * image_size)
    corner = torch.randint(image_size - hole + 1, (2, count, 1, 1, 1), generator=generator)
    row, column = torch.arange(image_size)[:, None], torch.arange(image_size)[None, :]
    inside = (row >= corner[0]) & (row < corner[0] + hole) & (column >= corner[1]) & (column < corner[1] + hole)
    contrast = 0.5 + 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = degradation.noise * torch.randn(ink.shape, generator=generator)
    picture = 0.15 + 0.7 * contrast * ink.masked_fill(inside, 0.0) + noise
    return picture.mul_(255).clamp_(0, 255).to(torch.uint8)


def load_digits(image_size: int = 28, *, train: int = 400, test: int = 200, seed: int = 0) -> SupervisedData:
    """Digits rendered from matplotlib's fonts as noisy grayscale images.

    Args:
        train, test: images per class.
    """
    return SupervisedData(
        "glyphs",
        render_letters(string.digits, train, image_size, 2 * seed),
        render_letters(string.digits, test, image_size, 2 * seed + 1),
    )


def load_unseen_letters(image_size: int = 28, *, images: int = 40, seed: int = 0) -> LabelledItems:
    """Capital Latin letters, ``images`` of each, drawn as :func:`load_digits` draws digits, without the look-alikes I, O, S
    and Z: what a network trained on digits has never seen."""
    letters = [letter for letter in string.ascii_uppercase if letter not in "IOSZ"]
    return render_letters("".join(letters), images, image_size, seed + 1_000_003)


def load_capitals(image_size: int = 28, *, train: int = 200, test: int = 50, seed: int = 0) -> SupervisedData:
    """Capital Latin letters rendered from matplotlib's fonts, much warped, with a hole and strong noise.

    Args:
        train, test: images per class.
    """
    characters = string.ascii_uppercase
    return SupervisedData(
        "letters",
        render_letters(characters, train, image_size, 2 * seed, HARD),
        render_letters(characters, test, image_size, 2 * seed + 1, HARD),
    )


def render_letters(characters: str, count: int, image_size: int, seed: int, degradation: Degradation = MILD) -> LabelledItems:
    """``count`` images of each of ``characters``."""
    generator = torch.Generator().manual_seed(seed)
    drawings = draw_letters(characters)
    check_images(count * len(characters), image_size)
    images = torch.cat([render(drawings[c], count, image_size, generator, degradation) for c in characters])
    return LabelledItems(images, torch.arange(len(characters)).repeat_interleave(count), tuple(characters))
