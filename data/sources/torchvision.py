"""torchvision's data sets."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from data.errors import UserError
from data.items import SPLITS, ImageSplits, LabelledItems, SupervisedData, resize

CIFAR_FS = {
    "val": "beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab crocodile maple_tree "
    "motorcycle tractor",
    "test": "whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox snail worm baby man "
    "woman bicycle pickup_truck rocket",
}
"""CIFAR-100 classes of CIFAR-FS's validation and test splits; the other 64 are for training (Bertinetto et al. 2018)."""


def load_cifar_fs(root: str | Path, image_size: int) -> ImageSplits:
    """CIFAR-FS: the 60 000 images of CIFAR-100 by class."""
    both = [from_torchvision("CIFAR100", Path(root), train=flag) for flag in (True, False)]
    images = torch.cat([torch.from_numpy(part.data) for part in both]).permute(0, 3, 1, 2).contiguous()
    images = images if image_size == images.shape[-1] else resize(images, image_size)
    labels = torch.cat([torch.tensor(part.targets) for part in both])
    names = both[0].classes
    split_of = {name: split for split, members in CIFAR_FS.items() for name in members.split()}
    parts = {}
    for split in SPLITS:
        classes = [i for i, name in enumerate(names) if split_of.get(name, "train") == split]
        chosen = torch.isin(labels, torch.tensor(classes))
        _, relabelled = labels[chosen].unique(return_inverse=True)
        parts[split] = LabelledItems(images[chosen], relabelled, tuple(names[i] for i in classes))
    return ImageSplits("cifar-fs", parts["train"], parts["val"], parts["test"])


TRAIN_TEST = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""Our names and torchvision's of the data sets that :func:`load_train_test` reads."""


def load_train_test(name: str, root: str | Path, image_size: int, seed: int = 0) -> SupervisedData:
    """A classification data set of torchvision by our name for it; ``seed`` is not needed.

    Raises:
        UserError: it is not on disk and cannot be downloaded.
    """
    train, test = (labelled(from_torchvision(TRAIN_TEST[name], Path(root), train=flag), image_size) for flag in (True, False))
    return SupervisedData(name, train, test, mirror=name != "mnist")


def labelled(source, image_size: int) -> LabelledItems:
    """Images of ``source``, a torchvision data set.

    Raises:
        UserError: its files hold no images, or labels of no class.
    """
    images, labels = torch.as_tensor(source.data), torch.as_tensor(source.targets)
    sound = images.dtype == torch.uint8 and images.dim() in (3, 4) and images.numel() and len(images) == len(labels)
    if not sound or int(labels.min()) < 0 or int(labels.max()) >= len(source.classes):
        shape = "×".join(map(str, images.shape))
        raise UserError(f"{type(source).__name__}'s files are damaged: they hold images {shape} and {len(labels)} labels")
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    images = images if image_size == images.shape[-1] else resize(images, image_size)
    return LabelledItems(images, labels, tuple(str(c) for c in source.classes))


def from_torchvision(name: str, root: Path, **options):
    """A torchvision data set, downloaded when missing.

    Raises:
        UserError: it is not on disk, or damaged there, and cannot be downloaded.
    """
    import torchvision.datasets

    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    there = set(root.iterdir()) if root.is_dir() else set()
    try:
        return getattr(torchvision.datasets, name)(str(root), download=True, **options)
    except Exception as error:  # damaged files raise whatever their bytes lead to
        made = missing[-1:] or ([entry for entry in root.iterdir() if entry not in there] if root.is_dir() else [])
        for entry in made:  # torchvision makes folders before it downloads
            remove_empty(entry)
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{name} is not in {root}, or damaged there, and cannot be downloaded ({reason}): put its files there"
        ) from error


def remove_empty(folder: Path) -> None:
    """Remove ``folder`` and the folders in it as far as they hold no file."""
    if folder.is_dir() and not folder.is_symlink():
        for entry in list(folder.iterdir()):
            remove_empty(entry)
        with suppress(OSError):
            folder.rmdir()
