"""Capital letters in many hands: domains, each a face, slant, stroke, ink, paper and noise of its own, for zero-shot tasks.

The letters keep their meaning from domain to domain, so that a domain never seen can be read without a labelled letter of it.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from PIL import ImageFont
from torch import Tensor

from data.augmentation import Warp, affine_maps
from data.episodes import Episode, TaskSpec, draw_counts
from data.errors import UserError
from data.memory import check_images
from data.seeding import mix_seed
from data.sources.glyphs import MASTER_SIZE, draw_letter

FACES = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        *("cmr10", "cmb10"),
    ),
    "val": ("cmss10", "cmtt10", "cmmi10"),
    "test": (
        *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    ),
}
"""Faces of each split, of those that matplotlib ships: no face is in two splits, and no test family is in another."""

AT_ONCE = 16  # domains that are drawn together
SLANT, ROTATION, WIDTH = 0.5, 25.0, 1.3  # largest shear, largest angle in degrees, largest ratio of width to height
ZOOM, CONTRAST, NOISE = (0.9, 1.3), (0.4, 1.0), (0.15, 0.35)  # noise is a fraction of the contrast, as what follows
GRATING, CLOUDS = 0.2, 0.3  # the largest amplitude of a paper's pattern
FOLDS = 2.0, 8.0  # waves of a pattern in the width of a picture
HAND = Warp(rotation=6, scale=(0.9, 1.1), shift=0.05)  # how a letter differs from the same one beside it


class Styles(NamedTuple):
    """What tells domains from one another; ``[domains]`` each but for ``shape``.

    Attributes:
        face, stroke, blur: which drawing of a letter, see :func:`draw_masters`.
        shape: ``[domains, 2, 2]``, from places in the picture to places in the drawing: slant, angle, width and size.
        contrast: between ink and paper; negative where the ink is dark.
        noise: standard deviation of the pixels' noise.
        grating, clouds: amplitudes of a paper's stripes and stains.
        across, down: waves of the stripes in the width and height of a picture.
    """

    face: Tensor
    stroke: Tensor
    blur: Tensor
    shape: Tensor
    contrast: Tensor
    noise: Tensor
    grating: Tensor
    clouds: Tensor
    across: Tensor
    down: Tensor

    def each(self, images: int) -> Styles:
        """The styles of so many ``images`` of each domain, one after another."""
        return Styles(*(part.repeat_interleave(images, dim=0) for part in self))


@dataclass(frozen=True)
class LetterDomains:
    """Tasks over domains: the first ``way`` capital letters in a style never seen, without a support.

    Args:
        image_size: height and width in pixels.
        way: how many letters, from A on.
        seed: of styles and pictures.

    Raises:
        UserError: an image size below 16, or more letters than there are.
    """

    image_size: int = 28
    way: int = len(string.ascii_uppercase)
    seed: int = 0
    name = "letters-domains"

    def __post_init__(self) -> None:
        if self.image_size < 16:
            raise UserError(f"image size {self.image_size} is too small for letters: use at least 16")
        if not 2 <= self.way <= len(string.ascii_uppercase):
            raise UserError(f"`way={self.way}`: there are {len(string.ascii_uppercase)} letters, give 2 to as many")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The letters, in the order of their numbers in every task."""
        return tuple(string.ascii_uppercase[: self.way])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        return (1, self.image_size, self.image_size)

    def tasks(self, split: str, domains: slice, queries: int, *, imbalance: float | None = None) -> Episode:
        """One task for each domain of a split; domain number i is the same whatever else is drawn.

        Args:
            split: whose faces: train, val or test.
            domains: numbers from ``start`` (0 when not given) up to ``stop``, any of them: there is no end of domains.
            queries: pictures per letter (on average, where letters are unequally frequent).
            imbalance: see :class:`~data.episodes.TaskSpec`; here no letter ever runs out. Domains have the same styles with it.

        Returns:
            Episode of uint8 pictures ``[domains, way * queries, 1, image_size, image_size]`` in the order of their letters,
            with a support of no items.
        """
        first, stop = domains.start or 0, domains.stop
        spec = TaskSpec(self.way, 1, queries, imbalance)
        parts = list(self._chunks(split, first // AT_ONCE, -(-stop // AT_ONCE), spec))
        pictures, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        kept = slice(first % AT_ONCE, first % AT_ONCE + stop - first)
        pictures, labels = pictures[kept], labels[kept]
        return Episode(pictures[:, :0], labels[:, :0], pictures, labels, self.way)

    def _chunks(self, split: str, first: int, stop: int, spec: TaskSpec) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures and labels of the domains ``AT_ONCE`` × ``first`` to ``AT_ONCE`` × ``stop``, some at a time."""
        masters = draw_masters(split)
        kind, total = list(FACES).index(split), spec.way * spec.queries
        for chunk in range(first, stop):
            styles = draw_styles(masters.shape[:3], seeded_generator(self.seed, kind, chunk))
            generator = seeded_generator(self.seed, kind, chunk, 0 if spec.balanced else 1)
            counts = torch.full((AT_ONCE, self.way), spec.queries) if spec.balanced else draw_counts(spec, AT_ONCE, generator)
            labels = torch.arange(self.way).repeat(AT_ONCE).repeat_interleave(counts.flatten())
            pictures = render(masters, styles.each(total), labels, self.image_size, generator)
            yield pictures.unflatten(0, (AT_ONCE, total)), labels.view(AT_ONCE, total)


def seeded_generator(*parts: int) -> torch.Generator:
    """A generator of its own for each combination of counters, the ``parts``."""
    return torch.Generator().manual_seed(mix_seed(*parts))


@functools.cache
def draw_masters(split: str) -> Tensor:
    """Every letter in every face of a ``split``, with three widths of stroke and two of blur: ``[faces, 3, 2, 26, MASTER_SIZE,
    MASTER_SIZE]`` in [0, 1]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = []
    for name in FACES[split]:
        face = ImageFont.truetype(str(folder / f"{name}.ttf"), MASTER_SIZE * 5 // 8)
        letters = [draw_letter(letter, face, b"") for letter in string.ascii_uppercase]
        drawn.append(torch.stack([letter for letter in letters if letter is not None]))
    plain = torch.stack(drawn)
    strokes = torch.stack([plain, *(F.max_pool2d(plain, size, 1, size // 2) for size in (3, 5))], dim=1)
    sharp = F.avg_pool2d(strokes.flatten(0, 1), 3, 1, 1)  # pictures are half as large: without it thin lines would vanish
    soft = F.avg_pool2d(F.avg_pool2d(sharp, 5, 1, 2), 5, 1, 2)
    return torch.stack([sharp, soft], dim=1).unflatten(0, strokes.shape[:2])


def draw_styles(kinds: tuple[int, ...], generator: torch.Generator) -> Styles:
    """Styles of ``AT_ONCE`` domains; ``kinds`` says how many faces, strokes and blurs there are."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(AT_ONCE, generator=generator)

    face, stroke, blur = (torch.randint(kind, (AT_ONCE,), generator=generator) for kind in kinds)
    slant, angle, zoom = uniform(-SLANT, SLANT), math.radians(ROTATION) * uniform(-1, 1), uniform(*ZOOM)
    stretch = (0.5 * math.log(WIDTH) * uniform(-1, 1)).exp()
    sheared = torch.stack([1 / (stretch * zoom), slant, torch.zeros(AT_ONCE), stretch / zoom], dim=-1).view(-1, 2, 2)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).view(-1, 2, 2)
    contrast, dark, striped = uniform(*CONTRAST), uniform(0, 1) < 0.5, uniform(0, 1) < 0.5
    waves, direction = uniform(*FOLDS), uniform(0, math.pi)
    return Styles(
        face,
        stroke,
        blur,
        shape=sheared @ turned,
        contrast=torch.where(dark, -contrast, contrast),
        noise=contrast * uniform(*NOISE),
        grating=contrast * uniform(0, GRATING) * striped,
        clouds=contrast * uniform(0, CLOUDS),
        across=waves * direction.cos(),
        down=waves * direction.sin(),
    )


def render(masters: Tensor, styles: Styles, labels: Tensor, image_size: int, generator: torch.Generator) -> Tensor:
    """A picture of each of the letters ``labels`` ``[n]``, each in its style: ``[n, 1, image_size, image_size]`` uint8.

    Args:
        masters: see :func:`draw_masters`.
        styles: one for each letter.
    """
    count, size = len(labels), (image_size, image_size)
    check_images(count, image_size, channels=4)  # floats
    hand = affine_maps(count, HAND, generator)
    maps = torch.cat([styles.shape @ hand[..., :2], hand[..., 2:]], dim=-1)
    grid = F.affine_grid(maps, [count, 1, *size], align_corners=False)
    drawing = masters[styles.face, styles.stroke, styles.blur, labels][:, None]
    ink = F.grid_sample(drawing, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    contrast, noise, grating, clouds, across, down = (part[:, None, None, None] for part in styles[4:])
    place = torch.linspace(0, 1, image_size)
    phase = torch.rand(count, 1, 1, 1, generator=generator)
    stripes = torch.sin(2 * math.pi * (across * place + down * place[:, None] + phase))
    stains = F.interpolate(torch.randn(count, 1, 5, 5, generator=generator), size=size, mode="bilinear")
    paper = 0.5 * (grating * stripes + clouds * stains)
    picture = contrast * (ink - 0.5) + paper + noise * torch.randn(ink.shape, generator=generator)
    return picture.add_(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
