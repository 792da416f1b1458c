"""What is said to the user: errors they can fix, and warnings about what their data allow."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input whose message is one line: what is wrong and what to do about it.

    Commands print it without a traceback and exit with code 2.

    Args:
        message: whatever stands in it, such as a file's name, is made :func:`readable`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(readable(message))


def readable(text: str) -> str:
    """A text that can be printed, on one line: control characters, and bytes of a file's name that are no text (UTF-8), are
    written as ``\\n`` or ``\\udcff``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)


class DataWarning(UserWarning):
    """Data or machine allow what is asked for, but not quite as asked; commands print it as one line."""


def closest(given: str, known: Iterable[str]) -> str | None:
    """The ``known`` name that may have been meant; ``None`` where none is like the ``given`` one."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), names)
    meant = max(close, key=lambda name: name[:1] == given[:1].lower(), default="")  # the first letter is seldom mistyped
    return names.get(meant)


def choose(given: object, known: Iterable[str]) -> str:
    """``"choose a, b, c"`` of the ``known`` names, and which of them may have been meant by the ``given`` one."""
    names = list(map(str, known))
    meant = closest(str(given), names)
    return f"choose {', '.join(names)}" + (f"; did you mean {meant}?" if meant else "")
