"""Locks that processes hold on files, for as long as they live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a ``file`` or folder that is there. However the process ends, the system gives it back.

    Args:
        wait: for another process that holds it.

    Yields:
        whether it is held: there are file systems without locks.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
        OSError: the file cannot be opened.
    """
    try:
        number = os.open(file, os.O_RDWR)  # file systems of the network lock what can be written to
    except OSError:
        number = os.open(file, os.O_RDONLY)
    try:
        yield take(number, wait)
    finally:
        os.close(number)


def take(number: int, wait: bool) -> bool:
    """Lock an open file; see :func:`locked`.

    Args:
        number: of the open file.
        wait: for another process that holds the lock.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
