"""mini-ImageNet in the layouts the field uses: class folders, split folders with CSV files, or pickles."""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems, resize
from data.sources.folder import load_folder, read_images

PICKLES = ("mini-imagenet-cache-{split}.pkl", "miniImageNet_category_split_{split}.pickle", "{split}.pkl")


def load_mini_imagenet(root: str | Path, image_size: int, *, seed: int = 0) -> ImageSplits:
    """Read mini-ImageNet from ``root``, in whichever of these layouts it finds.

    * pickles, one per split: ``mini-imagenet-cache-train.pkl`` (``image_data`` with ``class_dict``), or
      ``miniImageNet_category_split_train.pickle`` (``data`` with ``labels``);
    * ``images/*.jpg`` beside ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename,label``);
    * ``train/``, ``val/`` and ``test/`` folders of class folders, or a zip archive of them.

    Raises:
        UserError: none of these is there, or a file is damaged or unsafe.
    """
    path = Path(root)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    for pattern in PICKLES:
        files = {split: path / pattern.format(split=split) for split in SPLITS}
        if all(file.is_file() for file in files.values()):
            parts = {split: from_pickle(file, image_size) for split, file in files.items()}
            return ImageSplits("mini-imagenet", parts["train"], parts["val"], parts["test"])
    if all((path / f"{split}.csv").is_file() for split in SPLITS):
        parts = {split: from_csv(path, split, image_size) for split in SPLITS}
        return ImageSplits("mini-imagenet", parts["train"], parts["val"], parts["test"])
    return load_folder(path, image_size, seed=seed, name="mini-imagenet")


def from_csv(root: Path, split: str, image_size: int) -> LabelledItems:
    """One split listed in ``<split>.csv`` with its images in ``images/``."""
    with open(root / f"{split}.csv", newline="") as file:
        rows = sorted((row["label"], row["filename"]) for row in csv.DictReader(file))
    names = sorted({label for label, _ in rows})
    images = read_images([root / "images" / filename for _, filename in rows], image_size)
    return LabelledItems(images, torch.tensor([names.index(label) for label, _ in rows]), tuple(names))


def from_pickle(file: Path, image_size: int) -> LabelledItems:
    """One split from a pickle of arrays.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    content = load_arrays(file)
    if isinstance(content, dict) and {"image_data", "class_dict"} <= content.keys():
        names = sorted(content["class_dict"])
        members = [np.asarray(content["class_dict"][name]) for name in names]
        images = torch.from_numpy(np.ascontiguousarray(content["image_data"][np.concatenate(members)]))
        labels = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(m) for m in members]))
    elif isinstance(content, dict) and {"data", "labels"} <= content.keys():
        found, inverse = np.unique(np.asarray(content["labels"]), return_inverse=True)
        names, labels = [str(label) for label in found], torch.from_numpy(inverse)
        images = torch.from_numpy(np.ascontiguousarray(content["data"]))
    else:
        raise UserError(f"{file} holds neither image_data with class_dict nor data with labels")
    return LabelledItems(resize(images.permute(0, 3, 1, 2), image_size), labels, tuple(names))


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and NumPy arrays, and refuses everything else: no code can run."""

    SAFE = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module: str, name: str):
        """The few names that arrays need.

        Raises:
            UserError: any other name: it could run code.
        """
        if (module, name) not in self.SAFE:
            raise UserError(f"the pickle asks for {module}.{name}, which is not data: it is not loaded")
        return super().find_class(module, name)


def load_arrays(file: Path):
    """A pickle's content, by :class:`ArrayUnpickler`.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        return ArrayUnpickler(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{file} cannot be read as a pickle: {error}") from error
