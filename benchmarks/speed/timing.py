"""Interleaved timings, their ratios and their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Names of ``--clock``: the time that passes, or the time that this process has computed, of all its threads together, which
other work on the machine disturbs less."""


IN_A_ROW = 10
"""Training steps that a program takes before the next one does: in training nothing else comes between."""


@dataclass(frozen=True)
class Row:
    """One program of a group that does the same work.

    Attributes:
        case, group, name: what was timed; a group shares its work and its baseline.
        seconds: median of a round.
        per_second: units of work (tasks, images, steps) per second, of the median.
        ratio: how many times as fast as the group's baseline: the median of the rounds' ratios.
        low, high: their quartiles.
        extra: other numbers of this case.
    """

    case: str
    group: str
    name: str
    seconds: float
    per_second: float
    ratio: float
    low: float
    high: float
    extra: Mapping[str, float]


def interleave(
    case: str,
    group: str,
    programs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    work: float = 1.0,
    in_a_row: int = 1,
    clock: str = "wall",
    extra: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Row]:
    """Time programs round by round, after two rounds that are not counted; the first one is the baseline.

    Ratios are of the same round, so that what slows the machine for a while slows both.

    Args:
        case, group: see :class:`Row`.
        programs: name -> what is timed.
        rounds: how many.
        work: units of one call.
        in_a_row: calls of each program in a round, of which their mean counts. Where others come between any two, caches are
            cold, as they are not in training.
        clock: of :data:`CLOCKS`.
        extra: name -> other numbers.
    """
    now, taken = CLOCKS[clock], {name: list[float]() for name in programs}
    for number in range(-2, rounds):
        for name, program in programs.items():
            start = now()
            for _ in range(in_a_row):
                program()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                taken[name].append((now() - start) / in_a_row)
    base = next(iter(taken.values()))
    rows = []
    for name, seconds in taken.items():
        low, ratio, high = quartiles([first / own for first, own in zip(base, seconds, strict=True)])
        median = statistics.median(seconds)
        rows.append(Row(case, group, name, median, work / median, ratio, low, high, (extra or {}).get(name, {})))
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first, second and third quartile of at least two ``values``."""
    first, second, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, second, third


def format_rows(rows: Sequence[Row]) -> str:
    """A table, group by group; ratios stand before their quartiles."""
    lines, group = [], None
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(f"{row.case}: {group}")
        extra = "".join(f"  {name} {value:.3g}" for name, value in row.extra.items())
        ratio = f"{row.ratio:6.2f} ({row.low:.2f}, {row.high:.2f})"
        lines.append(f"  {row.name:44s} {1e3 * row.seconds:10.3f} ms {row.per_second:12.1f} /s {ratio}{extra}")
    return "\n".join(lines)
