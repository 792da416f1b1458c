"""Rows, tables and picture of :mod:`benchmarks.ambiguity`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.episodes import Attributes
from inference.evaluation.style import BLACK, BLUE, STYLE, VERMILLION, headline, key
from inference.evaluation.tables import Column, format_table, number

LEARNED, KAPPA = "noise-learned", "platipus-0.05"
ROWS = (
    "maml",
    *(f"noise-{sigma:g}" for sigma in (0.1, 0.2, 0.3, 0.5, 1)),
    *(f"platipus-{kappa:g}" for kappa in (0.02, 0.05, 0.15, 0.5)),
    LEARNED,
)
"""MAML; MAML with noise of a standard deviation; PLATIPUS with a KL weight beside a mean loss; and MAML with noise of the
standard deviation that PLATIPUS of :data:`KAPPA` has learned for its prior under the same seed (root mean square over weights):
no test task is looked at to choose it."""
FEW, MANY = 4, 16
"""Draws whose coverage is reported; it is estimated from all draws that are independent of one another."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: of :data:`ROWS`.
        seed: of everything.
        measures: mean and half-width of the 95 % interval over test tasks of each.
        noise: standard deviation of what is drawn, root mean square over weights; ``None`` of MAML.
        seconds: of training.
    """

    name: str
    seed: int
    measures: Mapping[str, tuple[float, float]]
    noise: float | None
    seconds: float


def cell(title: str, name: str, digits: int = 2, factor: float = 1.0) -> Column:
    """A column of a measure by ``name``, mean ± half-width."""

    def text(row: Row) -> str:
        mean, half = (factor * number for number in row.measures[name])
        return f"{mean:.{digits}f} ± {half:.{digits}f}"

    return Column(title, text)


COLUMNS = (
    Column("method", lambda r: r.name, left=True),
    Column("σ", lambda r: number(r.noise, ".2g")),
    cell("accuracy %", "accuracy", 1, 100),
    cell(f"coverage, {FEW} draws", "few"),
    cell(f"{MANY} draws", "many"),
    cell("reached %", "reached", 1, 100),
    cell("NLL", "nll", 3),
    cell("each query's", "marginal_nll", 3),
    cell(f"{Attributes.UNAMBIGUOUS} %", "plain", 1, 100),
    Column("seconds", lambda r: f"{r.seconds:.0f}"),
)


def seed_by_seed(rows: Sequence[Row]) -> str:
    """Coverage, what is reached and NLL of every method, one number for each seed."""
    named: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (ROWS.index(r.name), r.seed)):
        named.setdefault(row.name, []).append(row)

    def of_all(title: str, name: str, digits: int, factor: float = 1.0) -> Column:
        return Column(title, lambda both: " / ".join(f"{factor * r.measures[name][0]:.{digits}f}" for r in both[1]))

    columns = (
        Column("method", lambda both: both[0], left=True),
        Column("σ", lambda both: " / ".join(number(r.noise, ".2g") for r in both[1])),
        of_all(f"coverage, {FEW} draws", "few", 3),
        of_all(f"{MANY} draws", "many", 3),
        of_all("reached %", "reached", 1, 100),
        of_all("NLL", "nll", 3),
    )
    return format_table(named.items(), columns)


FAMILIES = {"noise": ("MAML with noise, by σ", VERMILLION, "s"), "platipus": ("PLATIPUS, by κ", BLUE, "o")}


def frontier(rows: Sequence[Row], about: str = "") -> Figure:
    """NLL against coverage of a few draws: a curve over σ of noise and one over κ of PLATIPUS, a panel for each seed.

    Args:
        rows: of any seeds.
        about: the run, for the title.
    """
    seeds = sorted({row.seed for row in rows})
    with plt.rc_context(STYLE):
        shape: dict[str, Any] = {"squeeze": False, "sharex": True, "sharey": True, "layout": "constrained"}
        figure, axes = plt.subplots(1, len(seeds), figsize=(max(4.5, 3.4 * len(seeds)), 4.6), **shape)
        for axis, seed in zip(axes[0], seeds, strict=True):
            at = {row.name: (row.measures["few"][0], row.measures["nll"][0]) for row in rows if row.seed == seed}
            for family, (label, colour, marker) in FAMILIES.items():
                names = [name for name in ROWS if name.startswith(family) and name != LEARNED and name in at]
                axis.plot(*zip(*map(at.__getitem__, names), strict=True), color=colour, marker=marker, label=label)
                label_points(axis, names, at, colour, right=family == "noise")
            if LEARNED in at:
                axis.plot(*at[LEARNED], "^", ms=8, mfc="none", color=BLACK, label=f"noise of the σ that {KAPPA} learned")
            if "maml" in at:
                axis.axhline(at["maml"][1], color=BLACK, ls="--", lw=1, label="MAML, which finds one answer")
            axis.set(title=f"seed {seed}", xlabel=f"coverage: answers found by {FEW} draws, of 3")
            axis.margins(x=0.16, y=0.12)
        axes[0, 0].set_ylabel("NLL of an answer (nats per query)")
        headline(figure, "What does it cost to find several right answers?", about)
        key(figure, axes[0])
    return figure


NEAR = 0.045
"""NLL between two labels one above the other, and between a label and a marker beside which it does not fit."""


def label_points(axis: Axes, names: Sequence[str], at: Mapping[str, tuple[float, float]], colour: str, *, right: bool) -> None:
    """Label the points of a curve on its ``right`` side, or its left one, beyond all markers there, and none above another.

    Args:
        axis: of coverage and NLL.
        names: of the curve's rows, of which the number is shown.
        at: coverage and NLL of all rows.
        colour: of the curve.
    """
    side, taken = (1 if right else -1), -math.inf
    for name in sorted(names, key=lambda name: at[name][1]):
        x, y = at[name]
        height = taken = max(y, taken + NEAR)
        beyond = max(side * other for other, nll in at.values() if min(y, height) - NEAR < nll < height + NEAR)
        how: dict[str, Any] = {"arrowprops": {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 4}}
        place = side * (beyond + 0.05), height
        how |= {"ha": "left" if right else "right", "va": "center", "color": colour, "fontsize": 8}
        axis.annotate(name.partition("-")[2], (x, y), place, **how)
