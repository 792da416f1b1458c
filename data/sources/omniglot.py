"""Omniglot (Lake et al. 2015) from one place or several, merged by alphabet and character."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from data.arguments import as_path, as_truth, check_kind
from data.errors import UserError, choose
from data.files import files_below, there
from data.gather import gather
from data.items import SPLITS, ImageSplits, LabelledItems, split_classes
from data.sources.folder import SUFFIXES, Folders, find_classes, has_splits, read_splits, split_tree
from data.sources.torchvision import from_torchvision

TORCHVISION, BACKGROUND, EVALUATION = "omniglot-py", "images_background", "images_evaluation"
"""torchvision's folder, and Lake's names of the two parts of Omniglot."""
ARCHIVES = "images_*.zip"
"""What Lake's archives of images are called."""

Places = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def load_omniglot(
    root: Places,
    image_size: int,
    seed: int = 0,
    *,
    val_alphabets: Sequence[str] | None = None,
    test_alphabets: Sequence[str] | None = None,
    rotations: bool = False,
) -> ImageSplits:
    """Omniglot from folders and zip archives of ``alphabet/character/*.png``, or torchvision's. Ink is bright.

    Characters are merged by alphabet and name, so that one which is in several places (Greek and Latin are in both small sets)
    is one class in one split, with each of its drawings once. Where no alphabets are named, those of ``images_evaluation`` are
    the test split, if that is among the places, and a fifth of the others validates; else ``seed`` splits alphabets as for
    :func:`~data.sources.folder.load_folder`. A tree of ``train/``, ``val/`` and ``test/`` stays as it is split.

    Args:
        root: a folder, such as one that holds Lake's archives (``images_*.zip``), or an archive; a list of these, or their
            names with commas between them. torchvision's Omniglot is downloaded into a folder that is empty or not there.
        image_size: height and width in pixels.
        val_alphabets, test_alphabets: names of the alphabets of these splits; where one is not given, ``seed`` chooses a fifth
            of the alphabets that are left.
        rotations: four classes of each training character: as it is drawn, and turned by 90, 180 and 270 degrees (Santoro et
            al. 2016). The turned characters of an alphabet are an alphabet of their own, such as ``Greek/rot90``. Characters
            that look the same when they are turned are different classes nevertheless.

    Raises:
        UserError: nothing there, unknown alphabets, none left to train on, or one character with two drawings of one name.
    """
    named = {"val": as_names(val_alphabets, "val_alphabets"), "test": as_names(test_alphabets, "test_alphabets")}
    turn = as_truth(rotations, "rotations")
    splits = read_splits(split_characters(places_of(root), named, seed), image_size, name="omniglot", mirror=False)
    train, val, test = (LabelledItems(255 - s.items, s.labels, s.class_names) for s in (splits.train, splits.val, splits.test))
    return ImageSplits("omniglot", with_rotations(train) if turn else train, val, test, mirror=False)


def as_names(given: Any, name: str) -> tuple[str, ...]:
    """Names, as they are ``given`` to an argument of this ``name``: several, or one text with commas between them; ``None`` is
    none.

    Raises:
        UserError: they are no names.
    """
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part.strip()]
    check_kind(name, given, list | tuple | None, "a list of names")
    for each in given or ():
        check_kind(name, each, str, "a list of names")
    return tuple(dict.fromkeys(given or ()))


def places_of(root: Places) -> list[Path]:
    """The folders and archives that ``root`` names, see :func:`load_omniglot`.

    Raises:
        UserError: it names none, or torchvision's cannot be had.
    """
    given = list(root) if isinstance(root, list | tuple) else [root]
    if len(given) == 1 and "," in (text := str(given[0])) and not there(text):
        given = [part.strip() for part in text.split(",") if part.strip()]
    paths = [as_path(part, "root") for part in given]
    if not paths:
        raise UserError("`root` names no folder or archive: give one at least")
    return list(dict.fromkeys(chain.from_iterable(opened(path, alone=len(paths) == 1) for path in paths)))


def opened(path: Path, *, alone: bool) -> Iterable[Path]:
    """The trees and archives in one place.

    Args:
        path: the place.
        alone: whether it is the only one; then torchvision's Omniglot is downloaded where nothing is there.
    """
    empty = not path.is_file() and (not path.is_dir() or not any(path.iterdir()))
    if (path / TORCHVISION).is_dir() or (empty and alone):
        for background in (True, False):
            from_torchvision("Omniglot", path, background=background)
        return path / TORCHVISION / BACKGROUND, path / TORCHVISION / EVALUATION
    archives = sorted(path.glob(ARCHIVES)) if path.is_dir() else []
    if archives and next(files_below(path, SUFFIXES), None) is None:
        return archives
    return (path,)


def split_characters(places: Sequence[Path], named: Mapping[str, tuple[str, ...]], seed: int) -> dict[str, Folders]:
    """The characters of each split.

    Args:
        places: trees and archives.
        named: the alphabets of ``val`` and ``test``, as far as they are.

    Raises:
        UserError: see :func:`load_omniglot`.
    """
    trees = {place: find_classes(place) for place in places}
    for place, tree in trees.items():
        if has_splits(tree):
            if len(trees) > 1 or any(named.values()):
                raise UserError(
                    f"{place} has train/, val/ and test/: give it alone, and without `val_alphabets` and `test_alphabets`"
                )
            return split_tree(place, tree, seed)
    characters, evaluation = merge(trees)
    test = named["test"] or tuple(name for name in evaluation if name not in named["val"])
    if named["val"] or test:
        return split_alphabets(characters, {"val": named["val"], "test": test}, seed)
    return split_tree(places[0], characters, seed)


def merge(trees: Mapping[Path, Folders]) -> tuple[Folders, tuple[str, ...]]:
    """The characters of several trees, by alphabet and name, and the alphabets of ``EVALUATION`` where other parts are
    there too.

    Raises:
        UserError: two drawings of a character have one name, or one of several trees has no alphabets.
    """
    found: dict[tuple[str, ...], list[Sequence[Path]]] = {}
    alphabets: dict[str, set[str]] = {}
    for place, tree in trees.items():
        if len(trees) > 1 and min(map(len, tree)) < 2:
            raise UserError(
                f"{place} holds characters of one alphabet alone, or of none: expected several alphabet/character/*.png"
            )
        for parts, files in tree.items():
            found.setdefault(parts[-2:], []).append(files)
            alphabets.setdefault(parts[-3] if len(parts) > 2 else place.stem, set()).add(parts[-2:][0])
    characters = {parts: distinct(parts, files) for parts, files in sorted(found.items())}
    return characters, tuple(sorted(alphabets.get(EVALUATION, ()) if len(alphabets) > 1 else ()))


def distinct(parts: tuple[str, ...], several: Sequence[Sequence[Path]]) -> list[Path]:
    """The drawings of one character in one place or several, each once.

    Args:
        parts: alphabet and name.
        several: the files of each place.

    Raises:
        UserError: two have one name, and are different drawings.
    """
    if len(several) == 1:
        return list(several[0])
    by_content: dict[bytes, Path] = {}
    by_name: dict[str, Path] = {}
    for file in chain.from_iterable(several):
        if by_content.setdefault(content(file), file) is file and (other := by_name.setdefault(file.name, file)) is not file:
            raise UserError(
                f"{'/'.join(parts)} has two different drawings {file.name}: {other} and {file}: give one of their places alone"
            )
    return [by_name[name] for name in sorted(by_name)]


def content(file: Path) -> bytes:
    """A checksum of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(file, "rb") as opened_file:
            return hashlib.file_digest(opened_file, "blake2b").digest()
    except OSError as error:
        raise UserError(f"cannot read the image {file}: {error.strerror}") from error


def split_alphabets(characters: Folders, named: Mapping[str, tuple[str, ...]], seed: int) -> dict[str, Folders]:
    """The characters of each split: of the named alphabets, and of a seeded fifth of those that are left where a split has none
    of its own.

    Args:
        characters: by alphabet and name.
        named: the alphabets of ``val`` and ``test``.

    Raises:
        UserError: an alphabet is unknown or in both, or too few are left.
    """
    known = sorted({parts[0] for parts in characters if len(parts) > 1})
    if not known:
        raise UserError(
            "`val_alphabets` and `test_alphabets` need alphabets, and there are none: expected alphabet/character/*.png"
        )
    for split, names in named.items():
        for name in names:
            if name not in known:
                raise UserError(f"`{split}_alphabets={name}`: there is no such alphabet: {choose(name, known)}")
    if both := sorted(set(named["val"]) & set(named["test"])):
        raise UserError(f"the alphabet {both[0]} is in `val_alphabets` and in `test_alphabets`: leave it out of one")
    split_of = {name: split for split, names in named.items() for name in names}
    left = [name for name in known if name not in split_of]
    if all(named.values()) and left:
        split_of |= dict.fromkeys(left, "train")
    elif len(left) >= len(SPLITS):
        split_of |= split_classes(left, seed, fractions=(0.8, 0.0, 0.2) if named["val"] else (0.8, 0.2, 0.0))
    else:
        raise UserError(
            f"{len(left)} of {len(known)} alphabets are left, too few to train on: name fewer for validation and test"
        )
    return {split: {k: v for k, v in characters.items() if split_of.get(k[0], "train") == split} for split in SPLITS}


def with_rotations(part: LabelledItems) -> LabelledItems:
    """Four classes of each: as it is, and turned counterclockwise by 90, 180 and 270 degrees.

    Args:
        part: images as high as wide.
    """
    turned = (torch.rot90(part.items, turns, dims=(-2, -1)) for turns in range(4))
    labels = torch.cat([part.labels + turns * part.num_classes for turns in range(4)])
    names = [turned_name(name, turns) for turns in range(4) for name in part.class_names]
    return LabelledItems(gather(turned), labels, tuple(names))


def turned_name(name: str, turns: int) -> str:
    """``Greek/rot90/character01`` for ``Greek/character01`` after one of its ``turns``."""
    if not turns:
        return name
    *alphabet, character = name.split("/")
    return "/".join((*alphabet, f"rot{90 * turns}", character))
