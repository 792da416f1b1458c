"""Images from disk: ``root/{train,val,test}/<class>/*`` or one tree ``root/<class>/*``, zipped or not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from data.errors import UserError
from data.gather import gather
from data.items import SPLITS, ImageSplits, LabelledItems, SupervisedData, split_classes
from data.sources.archive import unpack

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
AT_ONCE = 1024  # images decoded together


def load_folder(root: str | Path, image_size: int, *, seed: int = 0, name: str = "folder", mirror: bool = True) -> ImageSplits:
    """Read an image tree, split by folder or, where it is not, by a seeded split of its classes.

    A class is any folder that holds images, however deep (Omniglot's ``alphabet/character/*.png`` included); its name is
    the path below the split. Where classes are nested in groups (alphabets) an unsplit tree is split by group, so that
    test classes come from groups never trained on. All images are resized to ``image_size`` squared and share one mode:
    grayscale when every image is, RGB otherwise.

    Args:
        root: a folder or a zip archive.
        image_size: height and width in pixels.
        seed: chooses the class split where the tree has none.
        name: recorded as the data set's name.
        mirror: see :class:`~data.items.ImageSplits`.

    Returns:
        uint8 images of shape ``[n, 1 or 3, image_size, image_size]`` for each split.

    Raises:
        UserError: nothing at ``root``, no images, an empty split, or an image that cannot be read (named).
    """
    folders = find_classes(root)
    if any(parts[0] in SPLITS for parts in folders):
        members = {split: {k[1:]: v for k, v in folders.items() if k[0] == split} for split in SPLITS}
        for split in SPLITS:
            if not members[split]:
                raise UserError(f"{root} has no images in {split}/: expected root/{{train,val,test}}/<class>/*.png or .jpg")
    else:
        groups = sorted({parts[:-1] or parts for parts in folders})
        grouped = len(groups) >= len(SPLITS) and any(len(parts) > 1 for parts in folders)
        keys = {parts: "/".join(parts[:-1] or parts if grouped else parts) for parts in folders}
        assignment = split_classes(sorted(set(keys.values())), seed)
        members = {split: {k: v for k, v in folders.items() if assignment[keys[k]] == split} for split in SPLITS}
    return read_splits(members, image_size, name=name, mirror=mirror)


def load_train_test_folder(root: str | Path, image_size: int) -> SupervisedData:
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


def read_splits(
    members: dict[str, dict[tuple[str, ...], list[Path]]], image_size: int, *, name: str, mirror: bool
) -> ImageSplits:
    """Read the files of every class of every split; all images share one size and one mode.

    ``mirror``: whether a mirrored image is one of the same class, for augmentation."""
    images = read_images([path for split in SPLITS for files in members[split].values() for path in files], image_size)
    sizes = [sum(len(files) for files in members[split].values()) for split in SPLITS]
    train, val, test = (label_classes(part, members[split]) for part, split in zip(images.split(sizes), SPLITS, strict=True))
    return ImageSplits(name, train, val, test, mirror=mirror)


def label_classes(images: torch.Tensor, classes: dict[tuple[str, ...], list[Path]]) -> LabelledItems:
    """Images that were read class by class, with their labels and names."""
    counts = torch.tensor([len(files) for files in classes.values()])
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return LabelledItems(images, labels, tuple("/".join(parts) for parts in classes))


def load_tree(root: str | Path, image_size: int) -> LabelledItems:
    """Every class below ``root`` as one set, with no split: data for evaluation alone."""
    folders = find_classes(root)
    return label_classes(read_images([path for files in folders.values() for path in files], image_size), folders)


def find_classes(root: str | Path) -> dict[tuple[str, ...], list[Path]]:
    """Folders that hold images: path parts below the root -> sorted image files.

    A chain of single folders at the top (as archives have) is skipped.

    Raises:
        UserError: no such folder, no images in it, or a file that is no zip archive.
    """
    path = Path(root)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_file():
        if path.suffix.lower() != ".zip":
            raise UserError(f"{path} is neither a folder nor a .zip archive")
        path = unpack(path)
    while len(inner := visible(path)) == 1 and inner[0].is_dir() and any(p.is_dir() for p in visible(inner[0])):
        path = inner[0]
    folders: dict[tuple[str, ...], list[Path]] = {}
    for file in sorted(files_below(path)):
        *parts, name = file.relative_to(path).parts
        hidden = name.startswith(".") or any(part.startswith((".", "__")) for part in parts)
        if file.suffix.lower() in SUFFIXES and parts and not hidden:
            folders.setdefault(tuple(parts), []).append(file)
    if not folders:
        raise UserError(f"{root} holds no images: expected <class>/*.png or .jpg, or train/, val/ and test/ of these")
    return folders


def files_below(folder: Path) -> Iterator[Path]:
    """All files of the folder and those below it; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in files)


def visible(folder: Path) -> list[Path]:
    """The folder's subfolders and images that are not hidden."""
    entries = (p for p in folder.iterdir() if not p.name.startswith((".", "__")))
    return [p for p in entries if p.is_dir() or p.suffix.lower() in SUFFIXES]


def read_images(paths: Sequence[Path], image_size: int, *, channels: int | None = None) -> torch.Tensor:
    """``[n, channels, image_size, image_size]`` uint8, of many images mapped from a file, see :func:`~data.gather.gather`.

    Args:
        paths: image files.
        image_size: height and width in pixels.
        channels: 1 or 3; when not given 1 where all images are grayscale.

    Raises:
        UserError: an image that cannot be read (named).
    """
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        grey = channels == 1 if channels else set(pool.map(image_mode, paths)) <= {"1", "L", "I;16", "I"}
        read = partial(read_image, image_size=image_size, mode="L" if grey else "RGB")
        parts = (pool.map(read, paths[start : start + AT_ONCE]) for start in range(0, len(paths), AT_ONCE))
        return gather(torch.from_numpy(np.stack(list(arrays))) for arrays in parts)


def image_mode(path: Path) -> str:
    """The image's colour mode, read from its header."""
    with opened(path) as image:
        return image.mode


def read_image(path: Path, image_size: int, mode: str) -> np.ndarray:
    """One decoded image, turned as its camera was held, as uint8 ``[1 or 3, image_size, image_size]``, by ``mode``
    (``L`` or ``RGB``, as Pillow names them)."""
    with opened(path) as image:
        image.draft(mode, (image_size, image_size))  # lets the JPEG decoder skip detail; no effect on PNG
        upright = flat(ImageOps.exif_transpose(image), mode)
        array = np.asarray(upright.resize((image_size, image_size), Image.Resampling.BILINEAR))
        return array[None] if mode == "L" else array.transpose(2, 0, 1)


def flat(image: Image.Image, mode: str) -> Image.Image:
    """An image of any kind in a ``mode`` (``L`` or ``RGB``): on white where it is transparent, as most programs show it, and of
    16 bits the upper eight.

    Raises:
        UserError: numbers of 32 bits, of which nothing says how bright they are.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow would cut all above 255
    elif image.mode in ("I", "F"):
        low, high = image.getextrema()
        if low < 0 or high > 255 or (image.mode == "F" and 0 < high <= 1):  # type: ignore[operator]
            raise UserError(f"its pixels are numbers of 32 bits from {low:g} to {high:g}: convert it to 8 bits first")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file.

    Raises:
        UserError: it cannot be read, now or in the block.
    """
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # a broken file raises whatever its bytes lead to
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"cannot read the image {path}: {reason}") from error
