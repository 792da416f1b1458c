"""Images from disk: ``root/{train,val,test}/<class>/*`` or one tree ``root/<class>/*``, zipped or not."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from data.cache import images_files, keep_images, kept_images
from data.errors import DataWarning, UserError, readable
from data.files import check_plain, files_below, there
from data.gather import IN_MEMORY, gather
from data.items import SPLITS, ImageSplits, LabelledItems, SupervisedData, split_classes
from data.memory import check_memory
from data.sources.archive import unpack

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""What is decoded, whatever a file is called: of Pillow's other formats some start other programs."""
GREY = {"1", "L", "I", "I;16", "I;16L", "I;16B", "F"}
"""Pillow's modes of grayscale images."""
AT_ONCE = 1024  # images decoded together

Folders = dict[tuple[str, ...], list[Path]]
"""Folders that hold images: path parts below the root -> sorted image files."""


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
        UserError: nothing at ``root``, no images, an empty split, folders beside the splits, a class in several of them, or an
            image that cannot be read (named).
    """
    return read_splits(split_tree(root, find_classes(root), seed), image_size, name=name, mirror=mirror)


def split_tree(root: str | Path, folders: Folders, seed: int) -> dict[str, Folders]:
    """The ``folders`` of each split, see :func:`load_folder`.

    Args:
        root: what has them, for messages.

    Raises:
        UserError: an empty split, folders beside the splits, or a class in several of them.
    """
    if has_splits(folders):
        members = by_split(root, folders, SPLITS)
        for split in SPLITS:
            if not members[split]:
                raise UserError(f"{root} has no images in {split}/: expected root/{{train,val,test}}/<class>/*.png or .jpg")
        check_apart({split: ["/".join(parts) for parts in members[split]] for split in SPLITS}, root)
        return members
    groups = sorted({parts[:-1] or parts for parts in folders})
    grouped = len(groups) >= len(SPLITS) and any(len(parts) > 1 for parts in folders)
    keys = {parts: "/".join(parts[:-1] or parts if grouped else parts) for parts in folders}
    assignment = split_classes(sorted(set(keys.values())), seed)
    return {split: {k: v for k, v in folders.items() if assignment[keys[k]] == split} for split in SPLITS}


def has_splits(folders: Folders) -> bool:
    """Whether one of the ``folders`` stands in a folder of a split."""
    return any(parts[0].lower() in SPLITS for parts in folders)


def by_split(root: str | Path, folders: Folders, splits: Sequence[str]) -> dict[str, Folders]:
    """The ``folders`` of each of the ``splits`` that ``root`` has, without the split's own name.

    Raises:
        UserError: another folder stands beside those of the splits, or an image in one of them is of no class.
    """
    for parts, files in folders.items():
        if parts[0] not in splits:
            known = ", ".join(f"{split}/" for split in splits)
            raise UserError(
                f"{root} has the folder {parts[0]}/ beside {known}, whose images nothing reads: rename it, or move it away"
            )
        if len(parts) == 1:
            raise UserError(f"{files[0]} is in no class's folder: move it into {files[0].parent / '<class>'}")
    return {split: {parts[1:]: files for parts, files in folders.items() if parts[0] == split} for split in splits}


def check_apart(classes: Mapping[str, Sequence[str]], root: str | Path) -> None:
    """Refuse classes that are in several splits.

    Args:
        classes: the names of each split's.
        root: what has them, for the message.

    Raises:
        UserError: there is one.
    """
    split_of: dict[str, str] = {}
    for split, names in classes.items():
        for name in names:
            if (other := split_of.setdefault(name, split)) != split:
                raise UserError(
                    f"{root} has the class {name} in {other} and in {split}: splits of few-shot learning have different classes"
                )


def load_train_test_folder(root: str | Path, image_size: int) -> SupervisedData:
    """``root/{train,test}/<class>/*.png or .jpg``; ``root/val`` is not read.

    Raises:
        UserError: no such folders, others beside them, other classes in test than in training, or an unreadable image.
    """
    folders = find_classes(root)
    if not any(parts[0].lower() in SPLITS for parts in folders):
        raise UserError(f"{root} lacks train/ or test/: expected train/<class>/* and test/<class>/*, .png or .jpg")
    members = by_split(root, folders, SPLITS)
    if members.pop("val"):
        warnings.warn(f"{root}/val is not read: validation images are taken from train", DataWarning, stacklevel=2)
    if not all(members.values()):
        raise UserError(f"{root} lacks train/ or test/: expected train/<class>/* and test/<class>/*, .png or .jpg")
    if odd := sorted(set(members["train"]) ^ set(members["test"])):
        raise UserError(f"{root}: train and test have different classes ({', '.join('/'.join(k) for k in odd[:3])} …)")
    images = read_images([path for classes in members.values() for files in classes.values() for path in files], image_size)
    sizes = [sum(len(files) for files in classes.values()) for classes in members.values()]
    train, test = (label_classes(x, members[split]) for x, split in zip(images.split(sizes), members, strict=True))
    return SupervisedData("folder", train, test, mirror=True)


def read_splits(members: dict[str, Folders], image_size: int, *, name: str, mirror: bool) -> ImageSplits:
    """Read the files of every class of every split; all images share one size and one mode.

    ``mirror``: whether a mirrored image is one of the same class, for augmentation."""
    images = read_images([path for split in SPLITS for files in members[split].values() for path in files], image_size)
    sizes = [sum(len(files) for files in members[split].values()) for split in SPLITS]
    train, val, test = (label_classes(part, members[split]) for part, split in zip(images.split(sizes), SPLITS, strict=True))
    return ImageSplits(name, train, val, test, mirror=mirror)


def label_classes(images: torch.Tensor, classes: Folders) -> LabelledItems:
    """Images that were read class by class, with their labels and names."""
    counts = torch.tensor([len(files) for files in classes.values()])
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return LabelledItems(images, labels, tuple(readable("/".join(parts)) for parts in classes))


def load_tree(root: str | Path, image_size: int) -> LabelledItems:
    """Every class below ``root`` as one set, with no split: data for evaluation alone."""
    folders = find_classes(root)
    return label_classes(read_images([path for files in folders.values() for path in files], image_size), folders)


def find_classes(root: str | Path) -> Folders:
    """The class folders of a folder or a zip archive.

    A chain of single folders at the top (as archives have) is skipped.

    Raises:
        UserError: no such folder, no images in it, one in no class's folder, or a file that is no zip archive; see also
            :func:`~data.files.files_below`.
    """
    path = unpacked(root)
    folders: Folders = {}
    for file in sorted(files_below(path, SUFFIXES)):
        folders.setdefault(file.relative_to(path).parts[:-1], []).append(file)
    if not folders:
        raise UserError(f"{root} holds no images: expected <class>/*.png or .jpg, or train/, val/ and test/ of these")
    while is_chained(folders):
        folders = {parts[1:]: files for parts, files in folders.items()}
    if () in folders:
        raise UserError(f"{folders[()][0]} is in no class's folder: move it into one, or away")
    return folders


def unpacked(root: str | Path) -> Path:
    """The folder of a folder or a zip archive.

    Raises:
        UserError: no such folder, or a file that is no zip archive.
    """
    path = Path(root)
    if not there(path):
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        return path
    if not path.is_file() or path.suffix.lower() != ".zip":
        raise UserError(f"{path} is neither a folder nor a .zip archive")
    return unpack(path)


def is_chained(folders: Folders) -> bool:
    """Whether all stand in one folder that is no class, and no split."""
    return (
        len({parts[:1] for parts in folders}) == 1
        and all(parts and parts[0] not in SPLITS for parts in folders)
        and max(map(len, folders)) > 1
    )


def read_images(paths: Sequence[Path], image_size: int, *, channels: int | None = None) -> torch.Tensor:
    """``[n, channels, image_size, image_size]`` uint8. Many are decoded once, into a file in the cache folder, and mapped from
    it, so that they need not fit into memory.

    Args:
        paths: image files.
        image_size: height and width in pixels.
        channels: 1 or 3; when not given 1 where all images are grayscale.

    Raises:
        UserError: an image that cannot be read (named), a size that memory has no room for, or a cache folder that has
            no room or cannot be used.
    """
    threads = min(32, (os.cpu_count() or 1) + 4)
    one = 4 * image_size**2  # Pillow has four bytes for each pixel of a colour image
    check_memory(2 * threads * one, f"reading images of {image_size}×{image_size} pixels (`image_size={image_size}`)")
    shapes = {number: (len(paths), number, image_size, image_size) for number in (1, 3)}
    many = math.prod(shapes[3]) > IN_MEMORY
    files = images_files(paths, image_size, channels, PIL.__version__) if many else {}
    for number, file in files.items():
        if (kept := kept_images(file, shapes[number])) is not None:
            return kept
    at_once = max(threads, min(AT_ONCE, IN_MEMORY // one))
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():  # decoding releases the interpreter lock
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an image that large is refused
        batches = [paths[start : start + at_once] for start in range(0, len(paths), at_once)]
        grey = channels == 1 if channels else all(set(pool.map(image_mode, some)) <= GREY for some in batches)
        read = partial(read_image, image_size=image_size, mode="L" if grey else "RGB")
        arrays = (pool.map(read, some) for some in batches)
        parts = (torch.from_numpy(np.stack(list(some))) for some in arrays)
        shape = shapes[1 if grey else 3]
        if math.prod(shape) <= IN_MEMORY:
            return gather(parts)
        return keep_images(files[shape[1]], parts, shape, paths[0])


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
        if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):  # type: ignore[operator] # NaN fails too
            raise UserError(f"its pixels are numbers of 32 bits from {low:g} to {high:g}: convert it to 8 bits first")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file of one of :data:`FORMATS`.

    Raises:
        UserError: it is no plain file, has more pixels than Pillow's ``Image.MAX_IMAGE_PIXELS`` (89 million), or cannot be
            read, now or in the block.
    """
    check_plain(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except Exception as error:  # a broken file raises whatever its bytes lead to
        raise UserError(f"cannot read the image {path}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why an image cannot be read, of the ``error`` that its bytes led to."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels; make it smaller".replace(",", " ")
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__
