"""Images as one tensor, in memory or mapped from a file, the class of each image, and the split of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import UserError
from data.gather import take
from data.memory import check_images

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabelledItems:
    """Images, or their features, with labels: what tasks and batches are sampled from.

    Attributes:
        items: ``[n, *item_shape]``; images are uint8 ``[n, channels, height, width]``, features float32 ``[n, D]``.
        labels: ``[n]`` int64, an index into ``class_names``; in regression real targets ``[n]``.
        class_names: one name a class; none in regression.
    """

    items: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.labels):
            raise UserError(f"{len(self.items)} items but {len(self.labels)} labels: each item needs one")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_classes(self) -> int:
        """How many classes there are names for."""
        return len(self.class_names)

    @property
    def counts(self) -> Tensor:
        """``[classes]`` int64: how many items each class has."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def subset(self, mask: Tensor) -> LabelledItems:
        """The items where ``mask`` (``[n]`` bool) holds; all class names are kept."""
        return self.rows(mask.nonzero()[:, 0])

    def rows(self, chosen: Tensor) -> LabelledItems:
        """The items of these indices ``[m]``, in this order; a mapped data set stays mapped."""
        return LabelledItems(take(self.items, chosen), self.labels[chosen], self.class_names)

    def of_classes(self, names: Sequence[str]) -> LabelledItems:
        """The items of the classes ``names``, which are numbered in this order.

        Raises:
            UserError: several classes have one of these names.
        """
        if twice := [name for name, count in Counter(self.class_names).items() if count > 1 and name in names]:
            raise UserError(f"{twice[0]} is the name of two classes: give each a name of its own by `class_names`")
        numbers = torch.full((self.num_classes,), -1)
        numbers[torch.tensor([self.class_names.index(name) for name in names])] = torch.arange(len(names))
        labels = numbers[self.labels]
        rows = (labels >= 0).nonzero()[:, 0]
        return LabelledItems(take(self.items, rows), labels[rows], tuple(names))

    def choose(self, count: int | None, seed: int) -> LabelledItems:
        """A seeded choice of ``count`` items; all of them, in their order, where it is ``None``.

        Raises:
            UserError: more than there are.
        """
        if count is None:
            return self
        if count > len(self):
            raise UserError(f"{count} items asked for, but there are {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return self.rows(order)

    def choose_per_class(self, count: int, seed: int) -> LabelledItems:
        """A seeded choice of ``count`` items of every class; a smaller count with the same seed is a part of it.

        Raises:
            UserError: a class has fewer.
        """
        least = int(self.counts.argmin())
        if count > int(self.counts[least]):
            has = f"class {self.class_names[least]} has {int(self.counts[least])}"
            raise UserError(f"{count} images per class asked for, but {has}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        order = order[self.labels[order].argsort(stable=True)]
        first = self.counts.cumsum(0) - self.counts
        return self.rows(order[(first[:, None] + torch.arange(count)).flatten()])

    def hold_out(self, images: int) -> tuple[LabelledItems, LabelledItems]:
        """Split off the last ``images`` items of every class: (kept, held out).

        Raises:
            UserError: a class has no more than ``images`` items.
        """
        if images >= int(self.counts.min()):
            raise UserError(f"cannot hold out {images} images per class: the smallest class has {int(self.counts.min())}")
        held = self.ranks() >= (self.counts - images)[self.labels]
        return self.subset(~held), self.subset(held)

    def ranks(self) -> Tensor:
        """``[n]`` int64: 0, 1, … inside each class, in the order of the items."""
        order = self.labels.argsort(stable=True)
        first = (self.counts.cumsum(0) - self.counts)[self.labels[order]]
        return torch.empty_like(self.labels).index_copy(0, order, torch.arange(len(self)) - first)


@dataclass(frozen=True)
class ImageSplits:
    """A few-shot data set: disjoint classes for training, validation and test.

    Attributes:
        name: the data set's name, as in ``--data``.
        train, val, test: :class:`LabelledItems` of uint8 images of one size.
        mirror: whether a horizontally flipped image still belongs to its class (photographs: yes, letters: no).
    """

    name: str
    train: LabelledItems
    val: LabelledItems
    test: LabelledItems
    mirror: bool = True
    splits: tuple[str, ...] = field(default=SPLITS, init=False)

    @classmethod
    def of(cls, items: LabelledItems, *, name: str = "own", seed: int = 0, mirror: bool = True) -> ImageSplits:
        """Split a data set of one's own by class: 64 % of the classes for training, 16 % for validation, 20 % for test.

        Args:
            items: of all classes, with labels; uint8 images, floats in [0, 1], or features ``[n, D]``.
            name: of the data set.
            seed: of the split.
            mirror: whether a mirror image still belongs to its class.

        Raises:
            UserError: real targets, too few classes, or two of one name.
        """
        if not items.class_names:
            raise UserError("few-shot tasks are made of classes, but the targets are real numbers")
        present = [known for known, count in zip(items.class_names, items.counts.tolist(), strict=True) if count]
        split_of = split_classes(present, seed)
        parts = {split: items.of_classes([known for known in present if split_of[known] == split]) for split in SPLITS}
        return cls(name, parts["train"], parts["val"], parts["test"], mirror=mirror)

    def __getitem__(self, split: str) -> LabelledItems:
        return getattr(self, split)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(channels, height, width)``."""
        return tuple(self.train.items.shape[1:])


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
        """Shape of one item, ``(*item)``."""
        return tuple(self.train.items.shape[1:])

    @property
    def is_classification(self) -> bool:
        """Whether targets are classes, not real numbers."""
        return bool(self.train.class_names)


def split_classes(names: Sequence[str], seed: int, fractions: Sequence[float] = (0.64, 0.16, 0.20)) -> dict[str, str]:
    """Seeded assignment of classes to ``train``, ``val`` and ``test``.

    Args:
        names: class names; their order does not matter.
        seed: same seed and names, same split.
        fractions: shares of the three splits; 64/16/20 is mini-ImageNet's.

    Returns:
        class name -> split.

    Raises:
        UserError: fewer than three classes.
    """
    if len(names) < len(SPLITS):
        raise UserError(f"{len(names)} classes cannot be split into train, val and test: at least 3 are needed")
    ordered = sorted(names)
    order = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(seed)).tolist()
    num_val, num_test = (max(1, round(share * len(ordered))) if share else 0 for share in fractions[1:])
    cut = len(ordered) - num_val - num_test
    return {ordered[j]: "train" if i < cut else "val" if i < cut + num_val else "test" for i, j in enumerate(order)}


def resize(images: Tensor, image_size: int) -> Tensor:
    """uint8 ``[n, channels, height, width]`` to ``image_size`` squared, a thousand images at a time."""
    check_images(len(images), image_size, images.shape[1])
    parts = []
    for part in images.split(1000):
        size = (image_size, image_size)
        part = F.interpolate(part.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        parts.append(part.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def as_images(images: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Check images that a user gives before a network sees them.

    Args:
        images: ``[..., channels, height, width]``, uint8, or floats in [0, 1] (uint8 images divided by 255).
        image_shape: the ``(channels, height, width)`` that the network takes.

    Returns:
        uint8 images as they are; floats in at least single precision.

    Raises:
        UserError: another shape, another type, or floats outside [0, 1].
    """
    expected = "×".join(map(str, image_shape))
    if images.dim() < 3 or tuple(images.shape[-3:]) != tuple(image_shape):
        given = "×".join(map(str, images.shape[-3:]))
        raise UserError(f"the network takes images of {expected} (channels×height×width), not {given}: convert them first")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(f"images must be uint8 or floats in [0, 1], not {images.dtype}: convert them first")
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):  # NaN fails too
        low, high = float(images.min()), float(images.max())
        raise UserError(f"images of floats must lie in [0, 1], these in [{low:g}, {high:g}]: divide by 255 or give uint8")
    return images.to(torch.promote_types(images.dtype, torch.float32))
