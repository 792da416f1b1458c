"""How all pictures look: one set of colours that survive colour blindness, a marker and a dash beside each, titles and keys."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito (2008), "Color universal design", without the yellow, which is too light for a line on white."""
MARKERS = "os^DvPX*<>"
DASHES = ("-", "--", ":", "-.")

STYLE: Any = {
    "figure.dpi": 120,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
}
"""Of ``matplotlib.pyplot.rc_context``; every picture is drawn in it."""


class Look(NamedTuple):
    """What tells one curve from the others: any one of the three would do for a while.

    Attributes:
        colour: of matplotlib.
        marker: of matplotlib; unlike that of the six before it.
        dash: of matplotlib; another one each time that the colours are used up.
    """

    colour: str
    marker: str
    dash: str


def look(number: int) -> Look:
    """The look of the curve with this ``number``, from 0."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], dash)


def looks() -> Iterator[Look]:
    """One look after another."""
    return map(look, itertools.count())


def headline(figure: Figure, question: str, about: str = "") -> None:
    """The title of a picture.

    Args:
        figure: the picture.
        question: that it answers.
        about: the run: data set, tasks, β.
    """
    width = int(13.5 * figure.get_figwidth())  # characters that fit
    lines = [line for text in (question, about) if text for line in textwrap.wrap(text, width)]
    figure.suptitle("\n".join(lines), fontsize=10.5)


def key(figure: Figure, axes: Sequence[Axes], *, columns: int = 0, beside: bool = False) -> None:
    """One legend for all ``axes``, each label once, outside of them: it hides nothing.

    Args:
        figure: the picture.
        axes: whose labels are shown.
        columns: of a legend below; as many as fit when 0.
        beside: on the right instead of below.
    """
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if beside:
        figure.legend(named.values(), named.keys(), loc="outside right center")
        return
    longest = max(map(len, named), default=1)
    fitting = max(1, int(figure.get_figwidth() / (0.45 + 0.068 * longest)))
    columns = columns or min(fitting, len(named))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)


def percent(fraction: float) -> str:
    """A ``fraction`` as text: ``"3.1 %"``."""
    return f"{100 * fraction:.1f} %"
