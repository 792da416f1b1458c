"""mini-ImageNet in the layouts the field uses: class folders, split folders, or images beside CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePath

import torch

from data.errors import UserError, readable
from data.files import there
from data.items import SPLITS, ImageSplits, LabelledItems
from data.sources.folder import check_apart, load_folder, read_images

PICKLES = ("*.pkl", "*.pickle")


def load_mini_imagenet(root: str | Path, image_size: int, *, seed: int = 0) -> ImageSplits:
    """Read mini-ImageNet from ``root``, in whichever of these layouts it finds.

    * ``images/*.jpg`` beside ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename,label``);
    * ``train/``, ``val/`` and ``test/`` folders of class folders, or a zip archive of them.

    Pickles, the third layout in use, are not read: a file of that format can run code, or end the process.

    Raises:
        UserError: none of these is there, a file is damaged, or a class is in several splits.
    """
    path = Path(root)
    if not there(path):
        raise UserError(f"no such file or folder: {path}")
    if all((path / f"{split}.csv").is_file() for split in SPLITS):
        parts = {split: from_csv(path, split, image_size) for split in SPLITS}
        check_apart({split: part.class_names for split, part in parts.items()}, path)
        return ImageSplits("mini-imagenet", parts["train"], parts["val"], parts["test"])
    pickles = [file.name for pattern in PICKLES for file in path.glob(pattern)]
    if pickles and not (path / "train").is_dir():
        raise UserError(
            f"{path} holds pickles ({pickles[0]}), which are not read, for they can run code: give folders train/, val/, test/"
            " of class folders, or images/ with train.csv, val.csv, test.csv; data/mini_imagenet.py converts what you trust"
        )
    return load_folder(path, image_size, seed=seed, name="mini-imagenet")


def from_csv(root: Path, split: str, image_size: int) -> LabelledItems:
    """One split listed in ``<split>.csv`` with its images in ``images/``.

    Raises:
        UserError: the file is no such list, names an image outside ``images/``, or one that cannot be read.
    """
    rows = sorted(read_rows(root / f"{split}.csv"))
    names = sorted({label for label, _ in rows})
    images = read_images([root / "images" / filename for _, filename in rows], image_size)
    numbers = {name: number for number, name in enumerate(names)}
    return LabelledItems(images, torch.tensor([numbers[label] for label, _ in rows]), tuple(map(readable, names)))


def read_rows(file: Path) -> Iterator[tuple[str, str]]:
    """(label, filename) of each line of a CSV ``file``.

    Raises:
        UserError: it is no table with these columns, lists nothing, or a name leads elsewhere.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            if not {"filename", "label"} <= set(table.fieldnames or ()):
                raise UserError(f"{file} lacks the columns filename and label")
            rows = [(row["label"], row["filename"]) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table: {error}") from error
    if not rows:
        raise UserError(f"{file} lists no images")
    for number, (label, name) in enumerate(rows, start=2):
        if not label or not name:
            raise UserError(f"{file}, line {number}: give a filename and a label")
        if PurePath(name).anchor or ".." in PurePath(name).parts:
            raise UserError(f"{file}, line {number}: {name} is not in images/, and images elsewhere are not read")
        yield label, name
