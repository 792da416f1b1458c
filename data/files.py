"""Files and folders of a user's, read whole or refused by name: links, pipes, and what may not be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError

DEEPEST = 64
"""Folders inside one another; more are refused."""
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def there(path: str | Path) -> bool:
    """Whether a path leads to anything; what cannot be a path at all leads to nothing."""
    return os.path.exists(path)


def check_plain(path: Path) -> None:
    """Refuse what is not a plain file, before it is opened: a pipe may never end, and a device does what it does.

    Raises:
        UserError: it is a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # who opens it says what is wrong
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'a device')}: give a file")


def files_below(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    """The files of a folder and of those below it that have one of the ``suffixes``, but for hidden ones.

    Links are followed. One that leads back to a folder around it brings nothing new, and is passed by.

    Raises:
        UserError: a folder that cannot be read, one that is there twice, a link that leads nowhere, folders inside one another
            beyond :data:`DEEPEST`, or a pipe or device with such a suffix.
    """
    yield from below(folder, suffixes, {}, ())


def below(
    folder: Path, suffixes: set[str], seen: dict[tuple[int, int], Path], around: tuple[tuple[int, int], ...]
) -> Iterator[Path]:
    """:func:`files_below`.

    Args:
        folder, suffixes: as there.
        seen: device and number of the folders that were read -> their path; the folder is added.
        around: those of the folders that this one stands in.

    Raises:
        UserError: see there.
    """
    try:
        status = os.stat(folder)
        number = (status.st_dev, status.st_ino)
        if number in around:
            return
        if number in seen:
            raise UserError(f"{folder} and {seen[number]} are one folder: remove the link")
        if len(around) > DEEPEST:
            raise UserError(f"more than {DEEPEST} folders stand inside one another: {folder}")
        seen[number] = folder
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in found:
        path = folder / entry.name
        if entry.is_symlink() and not there(path):
            raise UserError(f"{path} is a link that leads nowhere: mend or remove it")
        if entry.is_dir():
            if not entry.name.startswith("__"):  # __MACOSX, __pycache__
                yield from below(path, suffixes, seen, (*around, number))
        elif path.suffix.lower() in suffixes:
            check_plain(path)
            yield path
