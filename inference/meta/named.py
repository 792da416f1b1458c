"""Classes by name: ours by their short names, and those of users by their own, ``module.Class``."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import TypeVar

from data.errors import choose
from models.tasks.predictors import PREDICTORS, Predictor

T = TypeVar("T")


def find_class(name: str, known: Mapping[str, type[T]], kind: type[T]) -> type[T]:
    """A class by name.

    Args:
        name: one of the ``known``, or ``module.Class`` of a class that can be imported.
        known: ours.
        kind: what it must be.

    Raises:
        ValueError: there is no such class, or it is of another kind.
    """
    if name in known:
        return known[name]
    if "." not in name:
        own = f"or module.Class of a {kind.__name__} of your own"
        raise ValueError(f"{name} is unknown: {choose(name, (*known, own))}")
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"{name} cannot be imported: define the class at the top of a module, and load that first") from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{name} is no {kind.__name__}: derive it from {kind.__module__}.{kind.__name__}")
    return found


def name_of(given: object) -> str:
    """``module.Class`` of the class ``given``; a name as it is."""
    return f"{given.__module__}.{given.__qualname__}" if isinstance(given, type) else str(given)


def find_predictor(name: str) -> type[Predictor]:
    """A predictor by name, see :func:`find_class`.

    Raises:
        ValueError: see there.
    """
    return find_class(name, PREDICTORS, Predictor)
