"""``python -m data.mini_imagenet PICKLES FOLDER``: mini-ImageNet's pickles as a folder that ``--data mini-imagenet`` reads.

Two layouts of pickles are in use, with one file for each split: ``mini-imagenet-cache-train.pkl`` (``image_data`` with
``class_dict``) and ``miniImageNet_category_split_train.pickle`` (``data`` with ``labels``). **A pickle is a program.** Sibyl's
commands read none, and this script, which does, is for files whose origin you trust. It runs none of a file's programs as far
as we know: whatever class or function a pickle names, it gets one of six stand-ins written in Python (:data:`STAND_INS`), and
any other name ends the conversion; of NumPy nothing is called but to take bytes for numbers of 8 or 64 bits. Yet a file made
for it can use up memory or time. Images are written as PNG, so that nothing of them is lost.
"""

from __future__ import annotations

import argparse
import glob
import math
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from data.errors import UserError, readable
from data.files import check_plain
from data.items import SPLITS
from data.locks import locked

PATTERNS = ("mini-imagenet-cache-{}.pkl", "miniImageNet_category_split_{}.pickle", "{}.pkl", "{}.pickle")
TYPES: dict[str, np.dtype] = {"u1": np.dtype("u1"), "i4": np.dtype("<i4"), "i8": np.dtype("<i8"), "u8": np.dtype("<u8")}
"""Numbers that an array may have."""


class DType:
    """Stands in for ``numpy.dtype``: a name, whatever flags a file sets.

    Args:
        name: such as ``u1``.

    Raises:
        UserError: of numbers that images and labels are not.
    """

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or name.lstrip("<|=") not in TYPES:
            raise UserError(f"it has an array of {name!r}, and numbers of images and labels are {', '.join(TYPES)}")
        self.name = name.lstrip("<|=")

    @property
    def type(self) -> np.dtype:
        """NumPy's own."""
        return TYPES[self.name]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", "="):
            raise UserError("it has numbers of another byte order than most machines'")


class Array:
    """Stands in for ``numpy.ndarray``: :attr:`value` is made of a file's bytes once they have been counted."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        self.fill(content, dtype, shape, "F" if by_columns else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        """Take the numbers of ``content``, bytes or what Python 2 wrote for them.

        Args:
            dtype: a :class:`DType`.
            shape, order: as NumPy has them.

        Raises:
            UserError: they do not fit.
        """
        content = content.encode("latin1") if isinstance(content, str) else content
        counted = isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)
        if not (counted and isinstance(dtype, DType) and isinstance(content, bytes | bytearray) and order in ("C", "F")):
            raise UserError("it has an array that is none")
        if math.prod(shape) * dtype.type.itemsize != len(content):
            raise UserError("it has an array of another size than it says")
        self.value = np.frombuffer(content, dtype.type).reshape(shape, order=order)


def reconstruct(*_: Any) -> Array:
    """Stands in for what NumPy makes an empty array with."""
    return Array()


def from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Array:
    """Stands in for what NumPy makes an array with in newer pickles; see :meth:`Array.fill` for ``content``, ``dtype``,
    ``shape`` and ``order``."""
    array = Array()
    array.fill(content, dtype, shape, order)
    return array


def scalar(dtype: DType, content: Any) -> int:
    """Stands in for what NumPy makes one number with, from bytes (``content``) and their ``dtype``."""
    content = content.encode("latin1") if isinstance(content, str) else content
    return int(np.frombuffer(content, dtype.type, count=1)[0])


def encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for ``_codecs.encode``, by which old pickles of Python 3 write bytes.

    Raises:
        UserError: another ``encoding`` of the ``text`` than theirs.
    """
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise UserError(f"it has bytes in the encoding {encoding!r}")
    return text.encode("latin1")


STAND_INS = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): DType,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): from_buffer for core in ("core", "_core")},
    ("_codecs", "encode"): encode,
}
"""(module, name) that a pickle may ask for -> what it gets."""


PURE: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]
"""Python's own in Python: no C reads the file."""


class ArrayUnpickler(PURE):
    """Reads numbers, text, containers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """One of :data:`STAND_INS`.

        Raises:
            UserError: another name: it could run code.
        """
        if (module, name) not in STAND_INS:
            raise UserError(f"it asks for {module}.{name}, which is no data")
        return STAND_INS[module, name]

    def load_build(self) -> None:
        """Set the state of an array or its type.

        Raises:
            UserError: of anything else.
        """
        if type(self.stack[-2]) not in (Array, DType):
            raise UserError("it changes what is no array")
        super().load_build()

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what stands elsewhere, under the number ``pid``.

        Raises:
            UserError: always.
        """
        raise UserError("it asks for what stands elsewhere")

    dispatch: ClassVar[dict[int, Any]] = {**PURE.dispatch, pickle.BUILD[0]: load_build}


def read_pickle(file: Path) -> Any:
    """What a pickle holds; arrays are :class:`Array`.

    Raises:
        UserError: it cannot be read, or asks for anything but data.
    """
    check_plain(file)
    try:
        with file.open("rb") as content:
            return ArrayUnpickler(content, encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{file} is not converted: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{file} is damaged, or no pickle: {error or type(error).__name__}") from error


def numbers(value: Any) -> np.ndarray:
    """An array, or a list of whole numbers, as an array of NumPy's.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, Array) and hasattr(value, "value"):
        return value.value
    if isinstance(value, list | tuple) and all(isinstance(one, int) for one in value):
        return np.asarray(value, dtype=np.int64)
    raise UserError(f"a list of whole numbers is wanted where it has a {type(value).__name__}")


def images_by_class(content: Any) -> dict[str, np.ndarray]:
    """Class -> its images, ``[n, height, width, 3]``, uint8, of what one of the layouts holds, its ``content``.

    Raises:
        UserError: it is of neither layout.
    """
    if isinstance(content, dict) and {"image_data", "class_dict"} <= content.keys():
        images, members = numbers(content["image_data"]), content["class_dict"]
        if not isinstance(members, dict):
            raise UserError("its class_dict is no dictionary")
        found = {str(name): numbers(rows) for name, rows in members.items()}
    elif isinstance(content, dict) and {"data", "labels"} <= content.keys():
        images, labels = numbers(content["data"]), content["labels"]
        known = [str(label) for label in (labels if isinstance(labels, list | tuple) else numbers(labels).tolist())]
        if len(known) != len(images):
            raise UserError(f"it has {len(images)} images and {len(known)} labels")
        found = {name: np.flatnonzero(np.asarray(known) == name) for name in dict.fromkeys(known)}
    else:
        raise UserError("it holds neither image_data with class_dict nor data with labels")
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] != 3:
        raise UserError(f"its images are {images.dtype} {'×'.join(map(str, images.shape))}, not uint8 n×height×width×3")
    for name, rows in found.items():
        if not name or name in (".", "..") or any(sign in name for sign in "/\\\0") or readable(name) != name:
            raise UserError(f"{name!r} cannot be a folder's name")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(images):
            raise UserError(f"class {name} has an image {int(rows.max())}, and there are {len(images)}")
    return {name: images[rows] for name, rows in found.items()}


def convert(pickles: Path, folder: Path) -> None:
    """Write the images of three pickles as ``folder/{train,val,test}/<class>/<number>.png``.

    Args:
        pickles: the folder that has them.
        folder: a new one.

    Raises:
        UserError: there are no such pickles, one cannot be read, the folder is there already, or nothing can be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: give a new folder")
    layouts = ([pickles / pattern.format(split) for split in SPLITS] for pattern in PATTERNS)
    files = next((files for files in layouts if all(map(os.path.isfile, files))), None)
    if files is None:
        raise UserError(f"{pickles} has no pickles of train, val and test ({', '.join(p.format('train') for p in PATTERNS)})")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}-half-converted-"
        clear(folder.parent.glob(f"{glob.escape(prefix)}*"))
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            with locked(scratch):
                for split, file in zip(SPLITS, files, strict=True):
                    write_split(scratch / "whole" / split, file)
                (scratch / "whole").rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def clear(folders: Iterable[Path]) -> None:
    """Delete ``folders`` of conversions that were killed: those that no process holds the lock of, where there are locks."""
    for left in folders:
        with suppress(OSError), locked(left, wait=False) as alone:
            if alone:
                shutil.rmtree(left, ignore_errors=True)


def write_split(folder: Path, file: Path) -> None:
    """Write the images of one pickle into a folder of class folders.

    Raises:
        UserError: it cannot be read.
    """
    content = read_pickle(file)
    try:
        classes = images_by_class(content)
    except UserError as error:
        raise UserError(f"{file} is not converted: {error}") from error
    for name, images in classes.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number:05d}.png")
    print(f"{file.name}: {sum(map(len, classes.values()))} images of {len(classes)} classes")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name if __spec__ else 'data.mini_imagenet'}",
        description="Convert mini-ImageNet's pickles, of an origin that you trust.",
    )
    parser.add_argument("pickles", type=Path, help="folder with a pickle of each split")
    parser.add_argument("folder", type=Path, help="new folder of images")
    given = parser.parse_args(arguments)
    try:
        convert(given.pickles, given.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"images: {given.folder}; read them by --data mini-imagenet --root {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
