"""The cache folder: what is made of a user's files once, and kept, whole or not at all."""

from __future__ import annotations

import glob
import hashlib
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
        raise UserError(no_room(folder, f"{in_words(free)} free"))
    return folder


def no_room(folder: Path, reason: str) -> str:
    """One line about a cache ``folder`` that has too little room for a data set, for the ``reason`` given."""
    more = "set the environment variable SIBYL_CACHE to a folder with more"
    return f"no room for the decoded images in the cache folder {folder} ({reason}): {more}"


def images_file(paths: Sequence[Path], *kind: object) -> Path:
    """Where the images of these files are kept once they are decoded. Its name depends on the files' paths, sizes and times, so
    that changed ones are decoded anew.

    Args:
        kind: what else says how they are decoded, such as their size.
    """
    total = hashlib.sha256(repr(kind).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue  # who opens it says what is wrong
        total.update(os.fsencode(path.absolute()) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return cache_dir() / f"images-{total.hexdigest()[:32]}.uint8"


def kept_images(file: Path, count: int, image_size: int) -> Tensor | None:
    """``[count, channels, image_size, image_size]`` uint8, mapped from a ``file`` of :func:`keep_images`; ``None`` where there
    is none, or another."""
    try:
        channels, rest = divmod(file.stat().st_size, count * image_size**2)
        if rest or channels not in (1, 3):
            return None
        with file.open("rb") as content:
            return mapped(content, torch.uint8, (count, channels, image_size, image_size))
    except OSError:
        return None


def keep_images(file: Path, parts: Iterable[Tensor], size: int, source: Path) -> None:
    """Write images to a ``file``, unless another process does, which is waited for.

    Args:
        parts: of the images, one after another.
        size: of all of them, bytes.
        source: a file that is locked meanwhile.

    Raises:
        UserError: there is no room.
    """
    with locked(source) as alone:
        if file.exists() and file.stat().st_size == size:
            return
        prefix = f".{file.stem}-"
        for left in file.parent.glob(f"{glob.escape(prefix)}*") if alone else ():  # by a process that was killed
            left.unlink(missing_ok=True)
        folder = open_cache(size)
        number, temporary = tempfile.mkstemp(prefix=prefix, dir=folder)
        try:
            with os.fdopen(number, "wb") as content:
                for part in parts:
                    write(content, part)
                content.flush()
                os.fsync(content.fileno())
            os.replace(temporary, file)
        except OSError as error:
            raise UserError(no_room(folder, error.strerror or str(error))) from error
        finally:
            Path(temporary).unlink(missing_ok=True)
