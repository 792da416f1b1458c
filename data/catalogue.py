"""All data sets by name: ``load_data("glyphs")``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from data.errors import UserError
from data.items import ImageSplits
from data.sources.folder import load_folder
from data.sources.glyphs import load_glyphs
from data.sources.mini_imagenet import load_mini_imagenet
from data.sources.torchvision import load_cifar_fs, load_omniglot


class Name(StrEnum):
    """The few-shot image data sets of ``--data``."""

    GLYPHS = "glyphs"
    """Letters of many scripts, embedded."""
    FOLDER = "folder"
    """``root/{train,val,test}/<class>/*`` or ``root/<class>/*``, a folder or a zip archive."""
    OMNIGLOT = "omniglot"
    """torchvision's Omniglot: background alphabets for training and validation, evaluation alphabets for test."""
    CIFAR_FS = "cifar-fs"
    """CIFAR-100 by a 64/16/20 class split."""
    MINI_IMAGENET = "mini-imagenet"
    """User-supplied folders or pickles."""


DEFAULT_SIZE = {Name.GLYPHS: 28, Name.OMNIGLOT: 28, Name.CIFAR_FS: 32, Name.MINI_IMAGENET: 84, Name.FOLDER: 84}


def load_data(
    name: str = "glyphs", root: str | Path | None = None, *, image_size: int | None = None, seed: int = 0
) -> ImageSplits:
    """Load a data set with disjoint training, validation and test classes.

    Args:
        name: a :class:`Name`.
        root: where its files are; not needed for ``glyphs``. torchvision's sets are downloaded there when missing.
        image_size: height and width in pixels; ``None`` for the data set's usual one.
        seed: the glyphs' drawing, and the class split where the data has none.

    Raises:
        UserError: unknown name, missing root, or bad files.
    """
    try:
        kind = Name(name)
    except ValueError:
        raise UserError(f"unknown data set {name!r}: choose {', '.join(n.value for n in Name)}") from None
    size = image_size or DEFAULT_SIZE[kind]
    if kind is Name.GLYPHS:
        return load_glyphs(size, seed=seed)
    if root is None:
        raise UserError(f"--data {name} needs --root: the folder or archive that holds its images")
    if kind is Name.FOLDER:
        return load_folder(root, size, seed=seed)
    if kind is Name.MINI_IMAGENET:
        return load_mini_imagenet(root, size, seed=seed)
    return load_omniglot(root, size, seed) if kind is Name.OMNIGLOT else load_cifar_fs(root, size)
