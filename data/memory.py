"""What this machine's memory has room for, before a number of a user's fills it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from data.errors import UserError

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may use."""


def memory() -> float:
    """Bytes of memory that this machine has, or that this container may use; infinite where nobody says."""
    found = [float("inf")]
    with suppress(AttributeError, OSError, ValueError):  # Windows
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in LIMITS:
        with suppress(OSError, ValueError):  # another system; "max"
            found.append(int(file.read_text()))
    return min(found)


def check_memory(needed: float, what: str) -> None:
    """Refuse what memory has no room for.

    Args:
        needed: bytes, an estimate from below.
        what: is to be done, for the message.

    Raises:
        UserError: it needs more memory than there is.
    """
    if needed > (known := memory()):
        raise UserError(
            f"{what} takes at least {in_words(needed)} of memory, and there are {in_words(known)}: choose a smaller one"
        )


def check_images(count: int, image_size: int, channels: int = 1) -> None:
    """Refuse so many images as memory has no room for.

    Args:
        count: how many there will be.
        image_size: height and width in pixels.
        channels: bytes of a pixel.

    Raises:
        UserError: they need more memory than there is.
    """
    said = f"{count} images of {image_size}×{image_size} pixels (`image_size={image_size}`)"
    check_memory(count * channels * image_size**2, said)


def in_words(count: float) -> str:
    """A ``count`` of bytes in a unit of its size: ``16.0 GB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
