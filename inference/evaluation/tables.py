"""Tables as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        header: its heading.
        cell: from a row to its text.
        left: flush left; numbers are flush right.
    """

    header: str
    cell: Callable[[Any], str]
    left: bool = False


def format_table(rows: Iterable[Any], columns: Iterable[Column]) -> str:
    """``rows``, any records, as text under their headings, columns two blanks apart."""
    shown = tuple(columns)
    cells = [[column.header for column in shown], *([column.cell(row) for column in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column.left else text.rjust(width)
            for text, width, column in zip(line, widths, shown, strict=True)
        )
        for line in cells
    )


def number(value: float | None, form: str = ".3f", *, factor: float = 1.0) -> str:
    """``value`` times ``factor`` in the given format; ``-`` where there is none.

    Args:
        form: as in an f-string: ``.3f``, ``g``.
        factor: 100 for fractions shown in %.
    """
    return "-" if value is None else format(factor * value, form)


def plural(count: int, noun: str) -> str:
    """``count`` and ``noun``: ``1 run``, ``3 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def align(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """``rows`` of cells as text in columns, the ``left`` ones flush left and the others flush right."""
    columns = [Column(header, lambda row, i=i: row[i], i in left) for i, header in enumerate(rows[0])]  # type: ignore[misc]
    return format_table(rows[1:], columns)
