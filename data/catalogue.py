"""All data sets by name: ``load_data("glyphs")`` for few-shot tasks, ``load_domains("letters-domains")`` for zero-shot ones,
``load_supervised("glyphs")`` for one classifier.

A name may stand in both tables: ``glyphs`` are letters of many scripts for tasks, and the ten digits for one classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from data.arguments import as_path, as_whole, shown
from data.errors import UserError, choose
from data.items import ImageSplits, SupervisedData
from data.regression import load_curve
from data.sources.domains import LetterDomains
from data.sources.folder import load_folder, load_train_test_folder
from data.sources.glyph_attributes import load_attributed_glyphs
from data.sources.glyphs import glyph_classes, load_capitals, load_digits, load_glyphs
from data.sources.mini_imagenet import load_mini_imagenet
from data.sources.omniglot import Places, load_omniglot
from data.sources.torchvision import load_cifar_fs, load_train_test

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class DataSet(Generic[Loaded]):
    """What the catalogue knows of a data set.

    Attributes:
        load: called with the root (of embedded sets none), the image size and the seed, and with what is said of its choices.
        image_size: height and width when the user gives none, pixels.
        embedded: drawn by Sibyl; others need a root.
        choices: names of what can be chosen of this data set alone.
        several: whether its root may be several places.
        described: whether the first image of each class is a description of it, for zero-shot tasks.
        attributed: whether classes are what images have of three attributes, for tasks of two of them.
        classes: tells how many classes each split has, where that is known before it is loaded.
    """

    load: Callable[..., Loaded]
    image_size: int
    embedded: bool = False
    choices: tuple[str, ...] = ()
    several: bool = False
    described: bool = False
    attributed: bool = False
    classes: Callable[[], Mapping[str, int]] | None = None


FEW_SHOT: Mapping[str, DataSet[ImageSplits]] = {
    # letters of many scripts
    "glyphs": DataSet(lambda root, size, seed: load_glyphs(size, seed=seed), 28, embedded=True, classes=glyph_classes),
    # the same letters, each described by a clean one in another face: zero-shot
    "glyph-descriptions": DataSet(
        lambda root, size, seed: load_glyphs(size, seed=seed, described=True),
        28,
        embedded=True,
        described=True,
        classes=partial(glyph_classes, described=True),
    ),
    # letters that are bright or dark, lean right or left, are thick or thin: ambiguous tasks of two of these attributes
    "glyph-attributes": DataSet(
        lambda root, size, seed: load_attributed_glyphs(size, seed=seed), 28, embedded=True, attributed=True
    ),
    # root/{train,val,test}/<class>/* or root/<class>/*, a folder or a zip archive
    "folder": DataSet(lambda root, size, seed: load_folder(root, size, seed=seed), 84),
    # Omniglot from archives and folders, merged by alphabet and character, or torchvision's: background alphabets for training
    # and validation, evaluation alphabets for test
    "omniglot": DataSet(load_omniglot, 28, choices=("val_alphabets", "test_alphabets", "rotations"), several=True),
    # CIFAR-100 by a 64/16/20 class split
    "cifar-fs": DataSet(lambda root, size, seed: load_cifar_fs(root, size), 32),
    # user-supplied folders
    "mini-imagenet": DataSet(lambda root, size, seed: load_mini_imagenet(root, size, seed=seed), 84),
}
"""Data sets of ``svi_sib``: disjoint classes for training, validation and test."""

DOMAINS: Mapping[str, DataSet[LetterDomains]] = {
    # the capital Latin letters in faces, inks and noises of their own in each task
    "letters-domains": DataSet(lambda root, size, seed: LetterDomains(size, seed=seed), 28, embedded=True),
}
"""Data sets of ``svi_sib`` whose classes are the same in all tasks, and whose domains differ: zero-shot."""

SUPERVISED: Mapping[str, DataSet[SupervisedData]] = {
    # the digits 0 to 9 in many faces, warped and noisy
    "glyphs": DataSet(lambda root, size, seed: load_digits(size, seed=seed), 28, embedded=True),
    # the capital Latin letters A to Z, harder to read than the digits
    "letters": DataSet(lambda root, size, seed: load_capitals(size, seed=seed), 28, embedded=True),
    # a one-dimensional regression with a gap in the inputs
    "curve": DataSet(lambda root, size, seed: load_curve(seed=seed), 1, embedded=True),
    # root/{train,test}/<class>/*, a folder or a zip archive
    "folder": DataSet(lambda root, size, seed: load_train_test_folder(root, size), 32),
    "mnist": DataSet(partial(load_train_test, "mnist"), 28),
    "fashion-mnist": DataSet(partial(load_train_test, "fashion-mnist"), 28),
    "cifar10": DataSet(partial(load_train_test, "cifar10"), 32),
    "cifar100": DataSet(partial(load_train_test, "cifar100"), 32),
}
"""Data sets of ``svi_bnn`` and ``svi_vid``: the same classes in training and test."""


def is_described(name: str) -> bool:
    """Whether tasks of the few-shot data set of this ``name`` are zero-shot: the support is a description of each class."""
    return name in FEW_SHOT and FEW_SHOT[name].described


def is_attributed(name: Any) -> bool:
    """Whether tasks of the few-shot data set of this ``name`` are of two out of three attributes."""
    return name in FEW_SHOT and FEW_SHOT[name].attributed


def load_data(
    name: str = "glyphs", root: Places | None = None, *, image_size: int | None = None, seed: int = 0, **choices: Any
) -> ImageSplits:
    """Load a data set with disjoint training, validation and test classes.

    Args:
        name: a key of :data:`FEW_SHOT`.
        root: where its files are; ``glyphs`` have none, ``omniglot`` may have several. torchvision's sets are downloaded there
            when missing.
        image_size: height and width in pixels; ``None`` for the data set's usual one.
        seed: the glyphs' drawing, and the class split where the data has none.
        choices: of ``omniglot`` alone: ``val_alphabets``, ``test_alphabets`` and ``rotations``, see
            :func:`~data.sources.omniglot.load_omniglot`.

    Raises:
        UserError: unknown name, missing root or one too many, choices that the data set does not have, or bad files.
    """
    return load_from(FEW_SHOT, name, root, image_size, seed, choices)


def load_domains(
    name: str = "letters-domains", root: str | Path | None = None, *, image_size: int | None = None, seed: int = 0
) -> LetterDomains:
    """What draws tasks over domains, which have the same classes.

    Args:
        name: a key of :data:`DOMAINS`.
        root: embedded sets have none.
        image_size: height and width in pixels; ``None`` for the data set's usual one.
        seed: of the drawing.

    Raises:
        UserError: an unknown name, or a root.
    """
    return load_from(DOMAINS, name, root, image_size, seed)


def load_supervised(
    name: str = "glyphs", root: str | Path | None = None, *, image_size: int | None = None, seed: int = 0
) -> SupervisedData:
    """Load a data set whose training and test items share their classes.

    Args:
        name: a key of :data:`SUPERVISED`.
        root: where its files are; embedded sets have none. torchvision's sets are downloaded there when missing.
        image_size: height and width in pixels; ``None`` for the data set's usual one.
        seed: of the embedded sets' drawing.

    Raises:
        UserError: unknown name, missing root or one too many, or bad files.
    """
    return load_from(SUPERVISED, name, root, image_size, seed)


def load_from(
    table: Mapping[str, DataSet[Loaded]],
    name: str,
    root: Places | None,
    image_size: int | None,
    seed: int,
    choices: Mapping[str, Any] = MappingProxyType({}),
) -> Loaded:
    """Look ``name`` up in ``table`` and load it.

    Args:
        choices: of what this data set alone knows.

    Raises:
        UserError: an unknown name, files missing that it needs, or a ``root`` or choices that it has no use for.
    """
    if not isinstance(name, str) or name not in table:
        raise UserError(f"unknown data set {shown(name)!r}: {choose(shown(name), table)}")
    entry = table[name]
    if root is None and not entry.embedded:
        raise UserError(f"the data set {name!r} needs `root`: the folder or archive that holds its images")
    if root is not None and entry.embedded:
        raise UserError(f"the data set {name!r} is drawn, and reads no files: leave out `root={root}`, or choose `data=folder`")
    if unknown := [choice for choice in choices if choice not in entry.choices]:
        raise UserError(f"the data set {name!r} has no {unknown[0]}: leave it out")
    size = entry.image_size if image_size is None else as_whole(image_size, "image_size", 1)
    several = entry.several and isinstance(root, list | tuple)
    place = root if several else Path() if root is None else as_path(root, "root")
    return entry.load(place, size, as_whole(seed, "seed"), **choices)
