"""Ordinary supervised data sets: the same classes in training and test, or a curve to regress on."""

from __future__ import annotations

import string
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from data.errors import UserError
from data.items import LabelledItems, resize
from data.sources.folder import find_classes, label_classes, read_images
from data.sources.glyphs import HARD, MILD, Degradation, draw_letters, render
from data.sources.torchvision import from_torchvision


class SupervisedName(StrEnum):
    """Data sets of ``svi_bnn`` and ``svi_vid``."""

    GLYPHS = "glyphs"
    """The digits 0 to 9 in many faces, warped and noisy; embedded."""
    MNIST = "mnist"
    """torchvision's."""
    FASHION_MNIST = "fashion-mnist"
    """torchvision's."""
    CIFAR10 = "cifar10"
    """torchvision's."""
    CIFAR100 = "cifar100"
    """torchvision's."""
    FOLDER = "folder"
    """``root/{train,test}/<class>/*``, a folder or a zip archive."""
    LETTERS = "letters"
    """The capital Latin letters A to Z, harder to read than the digits; embedded."""
    CURVE = "curve"
    """A one-dimensional regression with a gap in the inputs; embedded."""


TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


@dataclass(frozen=True)
class SupervisedData:
    """Training and test items of the same classes.

    Attributes:
        name: as in ``--data``.
        train, test: uint8 images with class labels; or floats ``[n, features]`` with real targets and no class names.
        mirror: whether a mirror image still belongs to its class.
    """

    name: str
    train: LabelledItems
    test: LabelledItems
    mirror: bool = False

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.train.items.shape[1:])

    @property
    def is_classification(self) -> bool:
        return bool(self.train.class_names)


def load_supervised(
    name: str = "glyphs", root: str | Path | None = None, *, image_size: int | None = None, seed: int = 0
) -> SupervisedData:
    """Load a data set by :class:`SupervisedName`.

    Args:
        root: where its files are; torchvision's sets are downloaded there when missing.
        image_size: height and width in pixels; the data set's own when not given (32 for folders).
        seed: of the embedded sets.

    Raises:
        UserError: unknown name, missing root, or bad files.
    """
    try:
        kind = SupervisedName(name)
    except ValueError:
        raise UserError(f"unknown data set {name!r}: choose {', '.join(SupervisedName)}") from None
    if kind is SupervisedName.GLYPHS:
        return load_digits(image_size or 28, seed=seed)
    if kind is SupervisedName.LETTERS:
        return load_alphabet(image_size or 28, seed=seed)
    if kind is SupervisedName.CURVE:
        return load_curve(seed=seed)
    if root is None:
        raise UserError(f"--data {name} needs --root: the folder or archive that holds its images")
    if kind is SupervisedName.FOLDER:
        return load_supervised_folder(root, image_size or 32)
    train, test = (labelled(from_torchvision(TORCHVISION[kind], Path(root), train=flag), image_size) for flag in (True, False))
    return SupervisedData(kind, train, test, mirror=kind is not SupervisedName.MNIST)


def labelled(source, image_size: int | None) -> LabelledItems:
    """Images of a torchvision data set."""
    images = torch.as_tensor(source.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    images = images if image_size in (None, images.shape[-1]) else resize(images, int(image_size or 0))
    return LabelledItems(images, torch.as_tensor(source.targets), tuple(str(c) for c in source.classes))


def load_supervised_folder(root: str | Path, image_size: int) -> SupervisedData:
    """``root/{train,test}/<class>/*.png or .jpg``.

    Raises:
        UserError: no such folders, other classes in test than in training, or an unreadable image.
    """
    folders = find_classes(root)
    members = {split: {k[1:]: v for k, v in folders.items() if k[0] == split and len(k) > 1} for split in ("train", "test")}
    if not all(members.values()):
        raise UserError(f"{root} lacks train/ or test/: expected train/<class>/* and test/<class>/*, .png or .jpg")
    if odd := sorted(set(members["train"]) ^ set(members["test"])):
        raise UserError(f"{root}: train and test have different classes ({', '.join('/'.join(k) for k in odd[:3])} …)")
    images = read_images([path for classes in members.values() for files in classes.values() for path in files], image_size)
    sizes = [sum(len(files) for files in classes.values()) for classes in members.values()]
    train, test = (label_classes(x, members[split]) for x, split in zip(images.split(sizes), members, strict=True))
    return SupervisedData("folder", train, test, mirror=True)


def load_digits(image_size: int = 28, *, train: int = 400, test: int = 200, seed: int = 0) -> SupervisedData:
    """Digits rendered from matplotlib's fonts as noisy grayscale images.

    Args:
        train, test: images a class.
    """
    return SupervisedData(
        "glyphs",
        render_letters(string.digits, train, image_size, 2 * seed),
        render_letters(string.digits, test, image_size, 2 * seed + 1),
    )


def load_letters(image_size: int = 28, *, images: int = 40, seed: int = 0) -> LabelledItems:
    """Capital Latin letters drawn as :func:`load_digits` draws digits, without the look-alikes I, O, S and Z: what a network
    trained on digits has never seen."""
    letters = [letter for letter in string.ascii_uppercase if letter not in "IOSZ"]
    return render_letters("".join(letters), images, image_size, seed + 1_000_003)


def load_alphabet(image_size: int = 28, *, train: int = 200, test: int = 50, seed: int = 0) -> SupervisedData:
    """Capital Latin letters rendered from matplotlib's fonts, much warped, with a hole and strong noise.

    Args:
        train, test: images a class.
    """
    characters = string.ascii_uppercase
    return SupervisedData(
        "letters",
        render_letters(characters, train, image_size, 2 * seed, HARD),
        render_letters(characters, test, image_size, 2 * seed + 1, HARD),
    )


def render_letters(characters: str, count: int, image_size: int, seed: int, degradation: Degradation = MILD) -> LabelledItems:
    """``count`` images of each character."""
    generator = torch.Generator().manual_seed(seed)
    drawings = draw_letters(characters)
    images = torch.cat([render(drawings[c], count, image_size, generator, degradation) for c in characters])
    return LabelledItems(images, torch.arange(len(characters)).repeat_interleave(count), tuple(characters))


def load_curve(*, train: int = 120, test: int = 400, noise: float = 0.1, seed: int = 0) -> SupervisedData:
    """y = sin(2x) + x/2 + noise; training inputs lie in [−2, −0.6] and [0.6, 2], test inputs fill [−2, 2].

    Returns:
        Floats: inputs ``[n, 1]``, targets ``[n]``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(x: torch.Tensor) -> LabelledItems:
        y = curve(x) + noise * torch.randn(len(x), generator=generator)
        return LabelledItems(x[:, None], y, ())

    side = torch.where(torch.rand(train, generator=generator) < 0.5, -1.0, 1.0)
    inputs = side * (0.6 + 1.4 * torch.rand(train, generator=generator))
    return SupervisedData("curve", draw(inputs), draw(torch.linspace(-2, 2, test)))


def curve(x: torch.Tensor) -> torch.Tensor:
    """The regression function of :func:`load_curve`."""
    return torch.sin(2 * x) + x / 2
