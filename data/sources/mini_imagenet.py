"""mini-ImageNet in the layouts the field uses: class folders, split folders, or images beside CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems
from data.sources.folder import load_folder, read_images

PICKLES = ("*.pkl", "*.pickle")


def load_mini_imagenet(root: str | Path, image_size: int, *, seed: int = 0) -> ImageSplits:
    """Read mini-ImageNet from ``root``, in whichever of these layouts it finds.

    * ``images/*.jpg`` beside ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename,label``);
    * ``train/``, ``val/`` and ``test/`` folders of class folders, or a zip archive of them.

    Pickles, the third layout in use, are not read: a file of that format can run code, or end the process.

    Raises:
        UserError: none of these is there, or a file is damaged.
    """
    path = Path(root)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if all((path / f"{split}.csv").is_file() for split in SPLITS):
        parts = {split: from_csv(path, split, image_size) for split in SPLITS}
        return ImageSplits("mini-imagenet", parts["train"], parts["val"], parts["test"])
    pickles = [file.name for pattern in PICKLES for file in path.glob(pattern)]
    if pickles and not (path / "train").is_dir():
        raise UserError(
            f"{path} holds pickles ({pickles[0]}), which are not read, for they can run code: "
            "give folders train/, val/, test/ of class folders, or images/ with train.csv, val.csv, test.csv"
        )
    return load_folder(path, image_size, seed=seed, name="mini-imagenet")


def from_csv(root: Path, split: str, image_size: int) -> LabelledItems:
    """One split listed in ``<split>.csv`` with its images in ``images/``."""
    with open(root / f"{split}.csv", newline="") as file:
        rows = sorted((row["label"], row["filename"]) for row in csv.DictReader(file))
    names = sorted({label for label, _ in rows})
    images = read_images([root / "images" / filename for _, filename in rows], image_size)
    return LabelledItems(images, torch.tensor([names.index(label) for label, _ in rows]), tuple(names))
