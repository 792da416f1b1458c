"""Files that are written whole or not at all: under a temporary name, then renamed; and what a system that has no room says."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data.arguments import shown
from data.errors import UserError
from data.files import check_plain
from data.locks import locked
from inference.runs.processes import rank

TEMPORARY = re.compile(r"\..+\.\d+\.\d+(\.\w+)?")
"""Names that :func:`write_atomically` writes under."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a disk, a quota or a file that takes no more."""

REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO),
    *(errno.EIO, errno.ESTALE, errno.ENOTEMPTY, errno.EBUSY, errno.EMFILE, errno.ENFILE),
)
"""What the system says of paths that it does not let us use."""
MEMORY = "there is not enough memory for this: lower `batch`, or what else says how large arrays are"
TOO_LARGE = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "array is too big")
"""What torch and NumPy call an array that there is no memory for; numbers that stand for its size may overflow before."""


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None, new: bool = False) -> Path:
    """Call ``write(temporary path)`` and rename: a kill leaves the old file or the new one, never half of one, and so does the
    machine's own end, for the new one is on the disk by then.

    Args:
        keep: where the old file goes, in the same folder; it is deleted otherwise.
        new: whether there must be no old file.

    Raises:
        FileExistsError: there is one.
        IsADirectoryError: the path is the root of a file system.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.stem}.{rank()}.{os.getpid()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # some file systems tell here alone that there is no room
        if keep is not None and path.exists():
            os.replace(path, keep)
        if new and can_link(temporary, path):
            return path
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def can_link(file: Path, path: Path) -> bool:
    """Give a ``file`` the name ``path`` too, of two processes to one alone; false where the file system knows no second names.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


class Unfinished(UserError):
    """What stopped a run is not of its making, so that it can be continued, which the message says how to do."""


def no_room(error: BaseException | None) -> str | None:
    """What the system says where an ``error``, or one that led to it, is of a disk without room; ``None`` where it is another.

    Libraries in other languages, and other processes, pass on the system's words alone.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        for full in FULL:
            if number == full or os.strerror(full) in str(error):
                return os.strerror(full)
        error = error.__cause__ or error.__context__
    return None


def no_memory(error: BaseException | None) -> bool:
    """Whether an ``error``, or one that led to it, is of memory that is too small, or of an array beyond any memory."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in TOO_LARGE):
            return True
        error = error.__cause__ or error.__context__
    return False


def plainly(error: Exception) -> str | None:
    """What to tell the user of an ``error`` that is of the machine: too little memory, or a path that the system refuses;
    ``None`` where it is another."""
    if no_memory(error):
        return MEMORY
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return None


def reserve(path: Path, size: int) -> None:
    """Make an empty file at ``path`` once it is sure that ``size`` bytes can be written there, for libraries that do not
    survive a disk without room.

    Raises:
        OSError: there is none.
    """
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(0)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A block that writes what a user asked for at ``path``.

    Raises:
        UserError: the system does not let it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error


@contextmanager
def sole_writer(folder: Path, file: str | None = None) -> Iterator[None]:
    """A block that writes into a ``folder`` where no run's lock is held, while no other such block does. What killed processes
    have left half-written goes first, where the file system has locks; the folder is made where it is missing.

    Args:
        file: the name of what is written; anything when not given, for folders that hold nothing of others.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as alone:
        clear(folder.glob(f".{glob.escape(Path(file).stem)}.*" if file else ".*") if alone else ())
        yield


def clear(files: Iterable[Path]) -> None:
    """Delete those ``files`` that :func:`write_atomically` left half-written; it must be known that nobody writes them."""
    for file in files:
        if TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


def check_out(path: Path, option: str = "out") -> None:
    """Refuse, before any work, a folder that can neither be made nor written to; ``option`` is who names it.

    Raises:
        UserError: it is one.
    """
    try:
        os.fspath(path).encode()  # a name of other bytes is none to the libraries that write there
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        reason = "its name is no text in UTF-8" if isinstance(error, UnicodeEncodeError) else reason
        raise UserError(f"`{option}={shown(path)}` cannot be made: {reason}") from error
    place = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UserError(f"`{option}={shown(path)}` cannot be made: {place} is no folder that can be written to")


def checksum(text: str) -> str:
    """Of a short ``text``, for ``manifest.json``."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_json(path: Path, content: Any) -> Path:
    """``content`` as one JSON document, atomically; NaN is refused, ``null`` is the way to say "none"."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """The value, or what it holds by name, with ``None`` for a number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 whatever the system's own encoding is.

    Raises:
        OSError: it is missing.
        UserError: it is no file.
        ValueError: it is no text.
    """
    check_plain(path)
    return path.read_text(encoding="utf-8")
