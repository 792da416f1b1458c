"""Pictures of active learning; every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from inference.active import Acquisition
from inference.evaluation.style import STYLE, headline, key, looks

PER_ROW = 3


class Curve(NamedTuple):
    """Means over tasks before the first label that is asked for and after each, and half-widths of their 95 % intervals."""

    mean: Sequence[float]
    ci95: Sequence[float]


def worth_of_labels(
    curves: Mapping[str, Mapping[Acquisition, Curve]], measure: str, *, factor: float = 1.0, log: bool = False, about: str = ""
) -> Figure:
    """What predictions are worth after so many labels, a panel for each method; bands are 95 % intervals of means over tasks.

    Args:
        curves: by the method's name and by what was asked for; one label a turn.
        measure: in words, with its unit.
        factor: of the numbers.
        log: whether the axis is logarithmic.
        about: the run, for the title.
    """
    columns = min(PER_ROW, len(curves))
    rows = math.ceil(len(curves) / columns)
    with plt.rc_context(STYLE):
        size = (3.1 * columns, 2.5 * rows + 1.0)
        figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        styles = dict(zip(Acquisition, looks(), strict=False))
        for axis, (name, asked) in zip(axes.flat, curves.items(), strict=False):
            for acquisition, values in asked.items():
                colour, marker, _ = styles[acquisition]
                mean, half = factor * torch.tensor(values.mean), factor * torch.tensor(values.ci95)
                turns = range(len(mean))
                axis.fill_between(turns, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
                axis.plot(turns, mean, color=colour, marker=marker, ms=4, label=acquisition.value)
            axis.set_title(name)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if log:
                axis.set_yscale("log")
        for axis in axes.flat[max(0, len(curves) - columns) : len(curves)]:
            axis.set_xlabel("labels asked for")
            axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel(measure)
        headline(figure, "Which label is worth asking for? (Bands: 95 % intervals)", about)
        key(figure, list(axes.flat[: len(curves)]), columns=4)
    return figure
