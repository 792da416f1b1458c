"""What the options of every command share: checks, and values separated by commas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from data.errors import UserError


def parse_sweep(name: str, given: str | float | list[float]) -> tuple[float, ...]:
    """The values of an option that takes one number or several, ascending.

    Raises:
        UserError: no number, a negative one, or one that is not finite.
    """
    try:
        values = sorted({float(part) for part in (given if isinstance(given, list) else split_commas(str(given)))})
    except ValueError:
        raise UserError(f"--{name} {given!r} is neither a number nor numbers separated by commas") from None
    if not values or not all(0 <= value < float("inf") for value in values):
        raise UserError(f"--{name} {given!r}: every value must be finite and not negative")
    return tuple(values)


def check_minima(options: Any, minima: Mapping[str, float]) -> None:
    """Raise :class:`UserError` for the first option that is set and below its least value."""
    for name, least in minima.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} is too small: at least {least}")


def check_positive(options: Any, *names: str) -> None:
    """Raise :class:`UserError` for the first option that is not positive and finite."""
    for name in names:
        if not 0 < getattr(options, name) < float("inf"):
            raise UserError(f"--{name} {getattr(options, name)} must be positive")


def check_fraction(options: Any, name: str) -> None:
    """Raise :class:`UserError` for an option that does not lie between 0 and 1."""
    if not 0 < getattr(options, name) < 1:
        raise UserError(f"--{name} {getattr(options, name)} is a fraction: between 0 and 1")


def check_device(device: str) -> None:
    """Raise :class:`UserError` where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is available to PyTorch: use --device cpu, or auto")


def split_commas(text: str) -> list[str]:
    """``"a, b"`` to ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]
