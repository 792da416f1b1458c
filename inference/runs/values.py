"""Types of option values: numbers with a range, and several values separated by commas, checked by jsonargparse."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from jsonargparse.typing import register_type, restricted_number_type

from data.errors import choose
from data.mixed import Extent

T = TypeVar("T")

MOST = 2**31 - 1
"""Of a whole number: the most that counts, sizes of tensors and seeds can be in every library below."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Of other numbers, apart from 0: what single precision has room to compute with."""

if TYPE_CHECKING:  # what a checked value is
    NonNegativeInt = int
    PositiveInt = int
    TwoOrMore = int
    FourOrMore = int
    NonNegativeNumber = float
    ClosedUnitInterval = float
    OpenUnitInterval = float
    PositiveNumber = float
else:
    from jsonargparse.typing import ClosedUnitInterval as ClosedUnitInterval
    from jsonargparse.typing import OpenUnitInterval as OpenUnitInterval

    NonNegativeInt = restricted_number_type("WholeNumber", int, [(">=", 0), ("<=", MOST)])
    PositiveInt = restricted_number_type("WholeNumberAboveZero", int, [(">", 0), ("<=", MOST)])
    TwoOrMore = restricted_number_type("TwoOrMore", int, [(">=", 2), ("<=", MOST)])
    FourOrMore = restricted_number_type("FourOrMore", int, [(">=", 4), ("<=", MOST)])
    NonNegativeNumber = restricted_number_type("NonNegativeNumber", float, [(">=", 0), ("<=", LARGEST)])
    PositiveNumber = restricted_number_type("PositiveNumber", float, [(">", 0), (">=", SMALLEST), ("<=", LARGEST)])


class Several(tuple[T, ...]):
    """Values of one option: ``"5,20"`` on the command line and in YAML, a list, tuple or single value in Python.

    A subclass says in :meth:`item` how one value is read. Its instances are plain tuples, and their text is what
    :meth:`read` takes back.
    """

    ascending: ClassVar[bool] = False
    """Whether the values are sorted and each is kept once."""
    metavar: ClassVar[str] = "NAME,…"
    """What stands for them in ``--help``."""

    def __init_subclass__(cls) -> None:
        register_type(cls, str, cls.read)

    @classmethod
    def item(cls, part: Any) -> Any:
        """One value of what was given for it, ``part``.

        Raises:
            ValueError: it is none; the message says what it must be.
        """
        raise NotImplementedError

    @classmethod
    def read(cls, given: Any) -> Self:
        """Every value of ``given``.

        Raises:
            ValueError: there is none, or one is wrong.
        """
        if isinstance(given, str):
            given = [part.strip() for part in given.strip("[]() ").split(",") if part.strip()]
        elif not isinstance(given, Iterable):
            given = [given]
        values = [cls.item(part) for part in given]
        if not values:
            raise ValueError("give at least one value")
        return cls(sorted(set(values), key=cls.order) if cls.ascending else dict.fromkeys(values))

    @staticmethod
    def order(value: Any) -> Any:
        """What ascending values are sorted by."""
        return value

    @staticmethod
    def show(value: Any) -> str:
        """The text of one value."""
        return f"{value:g}" if isinstance(value, float) else str(value)

    def __str__(self) -> str:
        return ",".join(map(self.show, self))


class Sweep(Several[float]):
    """Finite numbers, 0 or more, ascending; several are tried, and validation data choose one."""

    ascending, metavar = True, "X,…"

    @staticmethod
    def show(value: float) -> str:
        """The shortest text that is this number again."""
        return repr(value).removesuffix(".0")

    @classmethod
    def item(cls, part: Any) -> float:
        """A number, 0 or more.

        Raises:
            ValueError: it is none.
        """
        try:
            value = math.nan if isinstance(part, bool) else float(part)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"{part} is not a finite number, 0 or more")
        if value > LARGEST or 0 < value < SMALLEST:
            raise ValueError(f"{part} is not 0, nor from {SMALLEST:g} to {LARGEST:g}")
        return value


class Widths(Several[int]):
    """Positive whole numbers in the order given; equal ones are all kept."""

    metavar = "N,…"

    @classmethod
    def read(cls, given: Any) -> Self:
        parts = given.strip("[]() ").split(",") if isinstance(given, str) else given if isinstance(given, Iterable) else [given]
        return cls(read_count(part) for part in parts if str(part).strip())


class Shots(Several[int]):
    """Positive whole numbers, ascending."""

    ascending, metavar, least = True, "N,…", 1

    @classmethod
    def item(cls, part: Any) -> int:
        """A whole number, the least or more.

        Raises:
            ValueError: it is none.
        """
        wanted = f"a whole number, {cls.least} or more"
        value = read_count(part, wanted)
        if value < cls.least:
            raise ValueError(f"{part} is not {wanted}")
        return value


class Ways(Shots):
    """Whole numbers, two or more, ascending."""

    least = 2


class Counts(Several[int | None]):
    """Positive whole numbers, or all (``None``), ascending."""

    ascending, metavar = True, "N,…"

    @classmethod
    def item(cls, part: Any) -> int | None:
        return None if part is None or part == "all" else read_count(part, "a positive whole number, or all")

    @staticmethod
    def order(value: int | None) -> float:
        """All is the largest."""
        return math.inf if value is None else value

    @staticmethod
    def show(value: int | None) -> str:
        """The number, or all."""
        return "all" if value is None else str(value)


class Names(Several[str]):
    """Words separated by commas."""

    @classmethod
    def item(cls, part: Any) -> str:
        return str(part)


class Choices(Several[T]):
    """Names out of a list, in the order given; a subclass sets ``known``, an enumeration or a tuple of names."""

    known: ClassVar[Any] = ()

    @classmethod
    def item(cls, part: Any) -> Any:
        return read_choice(part, cls.known)


def read_count(part: Any, wanted: str = "a positive whole number") -> int:
    """A positive whole number, from ``part``; ``wanted`` says in words what it must be.

    Raises:
        ValueError: it is none.
    """
    text = str(part).strip()
    if isinstance(part, bool) or not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{part} is not {wanted}")
    if int(text) > MOST:
        raise ValueError(f"{part} is more than {MOST}")
    return int(text)


def read_choice(part: Any, known: Any) -> Any:
    """``part`` as one of the ``known`` names.

    Raises:
        ValueError: it is none of them.
    """
    names = list(known)
    if part not in names:
        raise ValueError(f"{part} is unknown: {choose(part, names)}")
    return names[names.index(part)]


def read_extent(given: Any) -> Extent:
    """A range of whole numbers, ``given`` as 5-20 or as 5 alone.

    Raises:
        ValueError: it is none, or its end is below its beginning.
    """
    parts = str(given).split("-") if not isinstance(given, tuple | list) else list(given)
    numbers = [read_count(part, "a whole number or a range such as 5-20") for part in parts]
    if len(numbers) > 2 or numbers[0] > numbers[-1]:
        raise ValueError(f"{given} is not a whole number or a range such as 5-20")
    return Extent(numbers[0], numbers[-1])


register_type(Extent, str, read_extent)


def register_names(names: type[StrEnum]) -> None:
    """Let options take the values of an enumeration; jsonargparse takes its members' names by default."""
    register_type(names, str, lambda given: read_choice(given, names), type_check=isinstance)


def plain(value: Any) -> Any:
    """A value as YAML and JSON write it, and as it is read back."""
    if isinstance(value, Several | StrEnum | Extent):
        return str(value)
    return value
