"""What users have in hand, as tensors: NumPy arrays, PIL images, files, data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.transforms.functional import pil_to_tensor, rgb_to_grayscale

from data.errors import UserError
from data.files import check_plain, files_below, there
from data.gather import gather
from data.items import LabelledItems
from data.sources.folder import GREY, SUFFIXES, flat, opened, read_images

AT_ONCE = 256
"""Items of a data set that are read together."""


def as_items(x: Any, y: Any = None, *, class_names: Sequence[str] | None = None) -> LabelledItems:
    """Items with their targets.

    Args:
        x: as for :func:`as_tensor`; or a ``Dataset`` or ``DataLoader`` of (item, target) pairs, without ``y``.
        y: ``[n]`` (or ``[n, 1]``): classes as whole numbers or as names, or real targets; ``[n, d]`` real targets. A tensor, an
            array or a list.
        class_names: of classes given as numbers. When not given they are a data set's own (``classes``), or the numbers.

    Returns:
        items and targets: int64 classes in the order of ``class_names`` (names are sorted), or floats.

    Raises:
        UserError: no items, items of several kinds, or targets that are missing, too few or no targets.
    """
    if isinstance(x, LabelledItems):
        return x
    if isinstance(x, tuple) and len(x) == 2 and y is None:
        x, y = x
    if y is None:
        if not isinstance(x, Dataset | DataLoader):
            raise UserError("the items have no targets: give one per item")
        targets: list[Any] = []
        items = gather(chunk for chunk, part in read_pairs(x) if keep(targets, part))
        source = x.dataset if isinstance(x, DataLoader) else x
        y, class_names = targets, class_names or getattr(source, "classes", None)
        if len(targets) != len(items):
            raise UserError("the data set gives items without targets: give (item, target) pairs, or `y`")
    else:
        items = as_tensor(x)
    labels, names = as_targets(y, class_names)
    if len(items) != len(labels):
        raise UserError(f"{len(items)} items and {len(labels)} targets: give one target per item")
    return LabelledItems(items, labels, names)


def as_tensor(x: Any, *, image_shape: Sequence[int] | None = None) -> Tensor:
    """Items as one tensor ``[n, *item]``; of many it is mapped from a file, see :func:`~data.gather.gather`.

    Args:
        x: a tensor or array; a list of these, of PIL images or of image files; or a ``Dataset`` or ``DataLoader`` of items
            or of (item, target) pairs. Arrays of images may have their channels last.
        image_shape: ``(channels, height, width)`` that images are resized and converted to; without it all must be alike.

    Returns:
        uint8 images ``[n, channels, height, width]`` of PIL images and files; others as they are, but NumPy's double precision
        becomes torch's default.

    Raises:
        UserError: nothing of the kind, no items, or items of several kinds.
    """
    if isinstance(x, LabelledItems):
        x = x.items
    if isinstance(x, Tensor | np.ndarray):
        whole = one_tensor(x, many=True)
        return whole if image_shape is None else gather(fit_images(part, image_shape) for part in whole.split(AT_ONCE))
    if isinstance(x, Image.Image | str | Path):
        x = [x]
    if isinstance(x, Dataset | DataLoader):
        return gather(fitted(chunk, image_shape) for chunk, _ in read_pairs(x, image_shape))
    if image_shape is not None and isinstance(x, Sequence) and all(isinstance(one, str | Path) for one in x):
        return read_images([Path(one) for one in x], image_shape[-1], channels=image_shape[0])
    if not isinstance(x, Sequence):
        kinds = "a tensor, an array, a list of images or files, a Dataset or a DataLoader"
        raise UserError(f"items must be {kinds}, not {type(x).__name__}")
    return gather(stack(x[i : i + AT_ONCE], image_shape) for i in range(0, len(x), AT_ONCE))


def as_targets(y: Any, class_names: Sequence[str] | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Targets as a tensor, and the classes' names; no names for real targets.

    Raises:
        UserError: neither numbers nor names, or more classes than names.
    """
    if isinstance(y, str | bytes):
        raise UserError("targets are a single name: give one per item, in a list")
    if not isinstance(y, Tensor):
        try:
            y = np.asarray([one.tolist() if isinstance(one, Tensor) else one for one in y])
        except (TypeError, ValueError):
            raise UserError("targets must be numbers, or names of classes, all of one length") from None
        if y.dtype.kind in "US":
            y = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y
            y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
            if y.ndim != 1:
                raise UserError("targets must be numbers, or names of classes, one per item")
            names = tuple(class_names) if class_names else tuple(sorted(set(y.tolist())))
            if unknown := set(y.tolist()) - set(names):
                raise UserError(f"targets name {', '.join(sorted(unknown)[:3])}, which `class_names` does not")
            return torch.tensor([names.index(name) for name in y.tolist()]), names
        if y.dtype.kind not in "biuf":
            raise UserError("targets must be numbers, or names of classes")
        y = torch.from_numpy(y)
    if y.is_complex():
        raise UserError("targets must be numbers, or names of classes, not complex numbers")
    y = dense(y, "targets").cpu()
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if y.is_floating_point():
        return y if y.dtype != torch.float64 else y.to(torch.get_default_dtype()), ()
    y = y.long()
    if y.dim() != 1 or not len(y) or int(y.min()) < 0:
        raise UserError("classes must be whole numbers from 0, one per item")
    most = int(y.max()) + 1
    names = tuple(map(str, class_names)) if class_names else tuple(map(str, range(most)))
    if len(names) < most:
        raise UserError(f"targets go up to {most - 1}, but `class_names` has {len(names)} names")
    return y, names


def keep(targets: list[Any], part: Any) -> bool:
    """Add the targets in ``part`` to those there are; always true."""
    if part is not None:
        targets.extend(part.tolist() if isinstance(part, Tensor | np.ndarray) else part)
    return True


def read_pairs(source: Any, image_shape: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Any]]:
    """Items ``[some, *item]`` and their targets (``None`` where there are none), one batch of ``source``, a
    data set or loader, after another.

    Raises:
        UserError: it gives no batches of items.
    """
    ours = not isinstance(source, DataLoader)
    if ours and not isinstance(source, IterableDataset) and not hasattr(source, "__len__"):
        raise UserError(f"{type(source).__name__} has no length: define __len__, or derive it from IterableDataset")
    for batch in batches(DataLoader(source, AT_ONCE, collate_fn=list) if ours else source):
        if ours:
            paired = isinstance(batch[0], tuple | list)
            items = stack([sample[0] if paired else sample for sample in batch], image_shape)
            yield items, [sample[1] for sample in batch] if paired and len(batch[0]) > 1 else None
        elif isinstance(batch, tuple | list):
            yield one_tensor(batch[0], many=True), batch[1] if len(batch) > 1 else None
        else:
            yield one_tensor(batch, many=True), None


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader gives.

    Raises:
        UserError: torch cannot make batches of its items.
    """
    try:
        yield from loader
    except (TypeError, RuntimeError) as error:
        if "collate" not in str(error) and "stack expects each tensor" not in str(error):
            raise  # of the data set itself
        raise UserError(
            "the DataLoader cannot make batches of its items, which must be tensors or arrays of one shape: transform them, or"
            " give the Dataset itself"
        ) from error


def stack(items: Sequence[Any], image_shape: Sequence[int] | None = None) -> Tensor:
    """Items ``[*item]``, PIL images or files as ``[n, *item]``.

    Raises:
        UserError: they are not of one shape.
    """
    tensors = [fitted(one_tensor(item)[None], image_shape)[0] for item in items]
    for number, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            shapes = ["×".join(map(str, part.shape)) or "a number" for part in (tensors[0], tensor)]
            raise UserError(f"item {number} is {shapes[1]} where the first is {shapes[0]}: resize them to one shape")
    return torch.stack(tensors)


def one_tensor(item: Any, *, many: bool = False) -> Tensor:
    """One item, or ``many`` along a first dimension, as a tensor; channels first.

    Raises:
        UserError: it is no tensor with a number in every place, array, image, image file or number.
    """
    if isinstance(item, str | Path):
        with opened(Path(item)) as image:
            return one_tensor(image)
    if isinstance(item, Image.Image):
        return pil_to_tensor(flat(ImageOps.exif_transpose(item), "L" if item.mode in GREY else "RGB"))
    if isinstance(item, Tensor):
        return dense(item, "items")
    try:
        array = np.ascontiguousarray(item)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError):
        raise UserError(f"an item of type {type(item).__name__}: give tensors, arrays, PIL images or image files") from None
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.get_default_dtype())
    channels_last = tensor.dim() == 3 + many and tensor.shape[-1] in CHANNELS and tensor.shape[-3] not in CHANNELS
    return tensor.movedim(-1, -3).contiguous() if channels_last else tensor


def dense(given: Tensor, what: str) -> Tensor:
    """The ``given`` tensor without its history; ``what`` it holds is for the message.

    Raises:
        UserError: not every number has its place in memory.
    """
    if given.layout != torch.strided or given.is_meta or given.is_quantized:
        kind = "meta" if given.is_meta else "quantized" if given.is_quantized else str(given.layout).removeprefix("torch.")
        raise UserError(f"{what} are a {kind} tensor: give one that holds every number, as x.to_dense() and x.dequantize() do")
    return given.detach()


CHANNELS = (1, 3)


def fitted(items: Tensor, image_shape: Sequence[int] | None) -> Tensor:
    """The items as they are, or images of another shape."""
    return items if image_shape is None else fit_images(items, image_shape)


def fit_images(images: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Images ``[n, channels, height, width]``, or grey ones ``[n, height, width]``, in another shape: resized, grey ones
    repeated, colours made grey by their luma (ITU-R 601-2), as PIL does.

    Raises:
        UserError: they are no images.
    """
    images = images[:, None] if images.dim() == 3 and images.shape[-1] not in CHANNELS else images
    if images.dim() != 4 or images.shape[1] not in CHANNELS:
        raise UserError(f"images are [n, channels, height, width] with 1 or 3 channels, not {'×'.join(map(str, images.shape))}")
    channels, *size = image_shape
    values = images
    if list(images.shape[-2:]) != size:
        values = F.interpolate(values.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        if images.is_floating_point() and len(images):  # weights that sum up to a little more than 1 make white whiter
            values = values.clamp(float(images.min()), float(images.max()))
    if values.shape[1] != channels:
        values = values.expand(-1, channels, -1, -1) if channels == 3 else rgb_to_grayscale(values)
    if images.dtype == torch.uint8 and values.dtype != torch.uint8:
        values = values.round().clamp(0, 255).to(torch.uint8)
    return values


def image_files(place: str | Path) -> list[Path]:
    """The image files of a folder, itself and all below it, sorted; or the one file.

    Raises:
        UserError: there is nothing, or no image.
    """
    path = Path(place)
    if not there(path):
        raise UserError(f"no such file or folder: {path}")
    if not path.is_dir():
        check_plain(path)
        return [path]
    files = sorted(files_below(path, SUFFIXES))
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files
