"""Methods by name, each with options of its own behind it: ``maml:steps=5:first_order``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from data.errors import UserError, choose
from inference.runs.options import Options
from inference.runs.values import Several, plain

Own = TypeVar("Own", bound=Options)


class MethodChoices(Several[str]):
    """Names of methods, each with its own options behind it: ``prototypical,anil:steps=10``.

    A subclass says which methods there are, by name, each with its ``options``, and where.
    """

    metavar = "METHOD,…"
    methods: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    where: ClassVar[str] = ""

    @classmethod
    def item(cls, part: Any) -> str:
        """A method as it is typed, its options in their own order and without those that are as usual.

        Raises:
            ValueError: an unknown method or option, or a value that does not fit.
        """
        name, given = split_choice(str(part))
        if name not in cls.methods:
            raise ValueError(f"{name} is unknown{cls.where}: {choose(name, tuple(cls.methods))}")
        try:
            own = written(read_given(cls.methods[name].options, given))
        except UserError as error:
            raise ValueError(f"{name}: {error}") from None
        return f"{name}:{own}" if own else name


def split_choice(text: str) -> tuple[str, str]:
    """Name and options of a method, ``text``: ``maml:steps=5`` to ``maml`` and ``steps=5``."""
    name, _, given = text.strip().partition(":")
    return name.strip(), given.strip()


def read_given(kind: type[Own], given: str) -> Own:
    """A method's own options.

    Args:
        kind: their dataclass.
        given: as they stand behind its name: ``name=value``, separated by colons; a name alone is true.

    Raises:
        UserError: an unknown option, one given twice, or a value that does not fit.
    """
    values: dict[str, Any] = {}
    for part in (part.strip() for part in given.split(":")) if given else ():
        name, equals, value = part.partition("=")
        if name in values:
            raise UserError(f"`{name}` is given twice")
        values[name] = value if equals else True
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in values if name not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"no option {unknown[0] or given!r} of this method: {has}")
    return kind(**values)


def written(own: Options) -> str:
    """Options as they stand behind a method's name, those alone that are not as usual; :func:`read_given` reads them."""
    changed = [(field.name, getattr(own, field.name)) for field in fields(own) if getattr(own, field.name) != field.default]
    return ":".join(name if value is True else f"{name}={spelled(value)}" for name, value in changed)


def spelled(value: Any) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(plain(value))
