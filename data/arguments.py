"""Arguments of the Python interface that are of another kind than they should be, refused by name."""

from __future__ import annotations

import math
import operator
import os
import reprlib
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from data.errors import UserError

MOST = 2**63 - 1
"""Of a whole number, for every library below."""
SHOWN, SHOWN_OF_PATHS = 60, 240
"""Characters of a value in a message, and of a path."""


def shown(value: Any) -> str:
    """A value in few words: its text where that is short, or its type, with the shape of a tensor or array."""
    kind = type(value).__name__
    if (shape := getattr(value, "shape", None)) is not None and not isinstance(value, type) and len(shape):
        return f"a {kind} of shape {'×'.join(map(str, shape))}"
    text = " ".join(str(value).split()) if isinstance(value, str | int | float | type | PurePath) else reprlib.repr(value)
    most = SHOWN_OF_PATHS if isinstance(value, PurePath) else SHOWN
    return text if len(text) <= most else f"{text[: most - 1]}…"


def a_kind(value: Any) -> str:
    """A value's type, as a message names it."""
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def check_kind(name: str, value: Any, kinds: Any, wanted: str) -> None:
    """Refuse an argument of another type.

    Args:
        name: of the argument.
        kinds: its types.
        wanted: these in words.

    Raises:
        UserError: it is of none of them.
    """
    if not isinstance(value, kinds):
        raise UserError(f"`{name}` must be {wanted}, not {a_kind(value)}")


def as_path(value: Any, name: str = "path") -> Path:
    """A path, from an argument of this ``name``.

    Raises:
        UserError: it is none, or empty.
    """
    check_kind(name, value, str | os.PathLike, "a path")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise UserError(f"`{name}={shown(value)}` is no path")
    return Path(text)


def as_number(value: Any, name: str, *, zero: bool = False) -> float:
    """A finite number above 0, or ``zero`` too, from an argument of this ``name``.

    Raises:
        UserError: it is none, or beyond what single precision computes with.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not 1e-30 <= number <= 1e30 and not (zero and number == 0):
        raise UserError(f"`{name}={shown(value)}` must be a number, {'0 or' if zero else 'above 0:'} from 1e-30 to 1e30")
    return number


def as_truth(value: Any, name: str) -> bool:
    """True or false, NumPy's too, from an argument of this ``name``.

    Raises:
        UserError: it is neither.
    """
    check_kind(name, value, bool | np.bool_, "true or false")
    return bool(value)


def as_whole(value: Any, name: str, least: int = 0) -> int:
    """A whole number of Python, from an argument of this ``name``; NumPy's and tensors of one are whole numbers too.

    Raises:
        UserError: it is none, or below the ``least``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError):
        number = None
    if number is None or not least <= number <= MOST:
        raise UserError(f"`{name}={shown(value)}` must be a whole number, {least} or more")
    return number
