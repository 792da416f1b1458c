"""Pictures of many methods side by side; every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from inference.evaluation.figures import LEAST_ITEMS, Bins
from inference.evaluation.style import BLUE, STYLE, headline, key, looks, percent
from inference.meta.settings import NETWORK


def accuracy_against_time(records: Sequence[Any], *, about: str = "") -> Figure:
    """Accuracy and NLL of each method against what a task costs it.

    Args:
        records: one for each method, of the same tasks.
        about: the run, for the title.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.6 + 0.1 * len(records)), layout="constrained")
        for (colour, marker, _), r in zip(looks(), records, strict=False):
            name = named(r)
            transductive = r.transductive
            look = {"color": colour, "marker": marker, "mfc": colour if transductive else "none", "ls": "", "ms": 8}
            axes[0].errorbar(r.adapt_ms, 100 * r.accuracy, 100 * r.ci95, capsize=2, label=name, **look)
            axes[1].plot(r.adapt_ms, r.nll, **look)
        axes[0].set(ylabel="test accuracy (%), 95 % intervals")
        axes[1].set(ylabel="NLL (nats per query)")
        for axis in axes:
            axis.set(xlabel=f"time per task (ms), from {read_by(records)} to predictions", xscale="log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        headline(figure, "What does a better prediction cost? (Filled: sees the other queries)", about)
        key(figure, axes, columns=3)
    return figure


def read_by(records: Sequence[Any]) -> str:
    """What the methods of ``records`` start from in a task: features, but images where they adapt a network."""
    networks = {record.predictor == NETWORK for record in records}
    if len(networks) == 2:
        return "features (of networks: images)"
    return "images" if True in networks else "features"


def reliabilities(pooled: Mapping[str, tuple[Tensor, Tensor]], *, ece: Mapping[str, float], about: str = "") -> Figure:
    """Accuracy against confidence, a panel for each method; bars are 95 % intervals of independent items, and grey areas say
    how often each confidence occurs, relative to the most frequent.

    Args:
        pooled: name -> probabilities ``[n, way]`` and labels ``[n]``.
        ece: name -> expected calibration error, a fraction.
        about: the run, for the title.
    """
    columns = min(4, len(pooled))
    rows = math.ceil(len(pooled) / columns)
    with plt.rc_context(STYLE):
        size = (2.5 * columns, 2.5 * rows + 0.8)
        figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
        for axis in axes.flat[len(pooled) :]:
            axis.set_visible(False)
        for axis, (name, (probabilities, labels)) in zip(axes.flat, pooled.items(), strict=False):
            found = Bins.of(probabilities, labels)
            shown = found.counts >= LEAST_ITEMS
            axis.stairs(found.counts / found.counts.max(), found.edges, fill=True, color="0.88", label="how often")
            axis.plot([0, 1], [0, 1], color="grey", lw=1, label="as often right as they say")
            points, heights = found.confidence[shown], found.accuracy[shown]
            axis.plot(points, heights, marker="o", ms=4, color=BLUE, label="how often right", clip_on=False)
            axis.vlines(points, found.lower[shown], found.upper[shown], color=BLUE, lw=0.9, alpha=0.6)
            axis.set_title(f"{shortened(name)}\nECE {percent(ece[name])}", fontsize=9)
            axis.set(xlim=(0, 1), ylim=(0, 1))
        for axis in axes.flat[max(0, len(pooled) - columns) : len(pooled)]:  # the lowest of each column
            axis.set_xlabel("confidence")
            axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy")
        headline(figure, "Are predictions right as often as they say? (Fractions; bars: 95 % intervals)", about)
        key(figure, [axes.flat[0]])
    return figure


def shortened(name: str, width: int = 30) -> str:
    """A method's ``name`` in at most so many characters."""
    return name if len(name) <= width else f"{name[: width - 1]}…"


def named(one: Any) -> str:
    """The method as it is asked for, with β where it has one.

    Args:
        one: a record, or a variant.
    """
    name = f"{one.method}:{one.given}" if one.given else one.method
    return name if one.beta is None else f"{name}, β = {one.beta:g}"
