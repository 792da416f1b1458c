"""The cache folder: what is made of a user's files once, and kept, whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.errors import UserError
from data.gather import mapped, write
from data.locks import locked
from data.memory import in_words


def cache_dir() -> Path:
    """Where it is: ``$SIBYL_CACHE``, else ``~/.cache/sibyl``."""
    return Path(os.environ.get("SIBYL_CACHE") or Path.home() / ".cache" / "sibyl")


def open_cache(needed: int = 0) -> Path:
    """The cache folder, made where it is not there.

    Args:
        needed: bytes that will be written.

    Raises:
        UserError: it cannot be written to, or has not so much room.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        said = f"cannot write to the cache folder {folder}: {error.strerror}"
        raise UserError(f"{said}; set the environment variable SIBYL_CACHE to another") from error
    if free < needed:
        more = "set the environment variable SIBYL_CACHE to a folder with more"
        raise UserError(f"no room for the decoded images in the cache folder {folder} ({in_words(free)} free): {more}")
    return folder


def images_files(paths: Sequence[Path], *kind: object) -> dict[int, Path]:
    """Number of channels -> where the images of these files are kept once they are decoded. Names depend on the files' paths,
    sizes and times, so that changed ones are decoded anew: no program sets the time at which a file last changed in any way.

    Args:
        kind: what else says how they are decoded, such as their size.
    """
    total = hashlib.sha256(repr(kind).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue  # who opens it says what is wrong
        total.update(os.fsencode(path.absolute()))
        total.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0".encode())
    name = f"images-{total.hexdigest()[:32]}"
    return {channels: cache_dir() / f"{name}-{colours}.uint8" for channels, colours in ((1, "grey"), (3, "rgb"))}


def kept_images(file: Path, shape: Sequence[int]) -> Tensor | None:
    """As :func:`map_images`; ``None`` where there is no such file of this ``shape``, or it cannot be mapped."""
    try:
        return map_images(file, shape)
    except OSError:
        return None


def map_images(file: Path, shape: Sequence[int]) -> Tensor:
    """Images of a ``shape`` ``[n, channels, height, width]``, uint8, mapped from a ``file`` of :func:`keep_images`.

    Raises:
        OSError: there is no such file, it has another size, or cannot be mapped.
    """
    with file.open("rb") as content:
        if os.fstat(content.fileno()).st_size != math.prod(shape):
            raise OSError(errno.EINVAL, "it has changed")
        return mapped(content, torch.uint8, shape)


def keep_images(file: Path, parts: Iterable[Tensor], shape: Sequence[int], source: Path) -> Tensor:
    """Write images to a ``file``, unless another process does, which is waited for, and map them from it.

    Args:
        parts: of the images, one after another.
        shape: of all of them, ``[n, channels, height, width]``.
        source: a file that is locked meanwhile.

    Raises:
        UserError: there is no room, or the file cannot be written or mapped.
    """
    with locked(source) as alone:
        try:
            if not (file.is_file() and file.stat().st_size == math.prod(shape)):
                write_images(file, parts, math.prod(shape), clear=alone)
            return map_images(file, shape)
        except OSError as error:
            said = f"cannot keep the decoded images in {file}: {error.strerror or error}"
            raise UserError(f"{said}; set the environment variable SIBYL_CACHE to another folder") from error


def write_images(file: Path, parts: Iterable[Tensor], size: int, *, clear: bool) -> None:
    """Write images beside a ``file``, and rename.

    Args:
        parts: of the images, one after another.
        size: of all of them, bytes.
        clear: what was left behind where this was killed, for nobody else is at it.

    Raises:
        UserError: there is no room.
        OSError: the file cannot be written.
    """
    if file.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    prefix = f".{file.stem}-"
    for left in file.parent.glob(f"{glob.escape(prefix)}*") if clear else ():
        left.unlink(missing_ok=True)
    number, temporary = tempfile.mkstemp(prefix=prefix, dir=open_cache(size))
    try:
        with os.fdopen(number, "wb") as content:
            for part in parts:
                write(content, part)
            content.flush()
            os.fsync(content.fileno())
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)
