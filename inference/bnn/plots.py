"""The pictures of a β-BNN run, one function each; every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from inference.bnn.algorithms import Algorithm
from inference.bnn.report import BnnRecord
from inference.evaluation.figures import COLOURS, STYLE, RatePoint, logarithmic, rate_curves


def colour(algorithm: str) -> str:
    """Each algorithm has its own colour in all pictures."""
    return COLOURS[list(Algorithm).index(Algorithm(algorithm))]


def rate_distortion_curve(records: Sequence[BnnRecord]) -> Figure:
    """Distortion on the training data and NLL on validation data against rate, one curve per algorithm, one marker per β."""
    named: dict[str, list[RatePoint]] = {r["algorithm"]: [] for r in records}
    for r in records:
        heights = (r["distortion"] / r["items"], r["nll"])
        named[r["algorithm"]].append(RatePoint(r["beta"], r["rate"] or r["mixture_rate"] or 0.0, heights, (None, None)))
    labels = ("distortion (nats per training item)", "validation NLL (nats per item)")
    return rate_curves(named, labels=labels, rate="rate KL(q ‖ m) (nats)", colours=[colour(name) for name in named])


def learning_curves(history: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Figure:
    """Accuracy, where targets are classes, and NLL on test items (at most 2000) over each posterior's own epochs.

    Args:
        history: algorithm -> scalar name -> (epochs, values).
    """
    known = (("val/accuracy", 100, "test accuracy (%)"), ("val/nll", 1, "test NLL (nats per item)"))
    panels = [panel for panel in known if any(panel[0] in scalars for scalars in history.values())]
    with plt.rc_context(STYLE):
        size = (4.5 * len(panels), 3.4)
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        for axis, (name, factor, label) in zip(axes[0], panels, strict=True):
            for algorithm in (algorithm for algorithm, scalars in history.items() if name in scalars):
                epochs, values = history[algorithm][name]
                line = {"color": colour(algorithm), "label": algorithm, "marker": ".", "lw": 1.2}
                axis.plot(epochs, factor * np.asarray(values), **line)
            axis.set(xlabel="epochs of each posterior", ylabel=label)
        losses = [value for scalars in history.values() for value in scalars.get("val/nll", ((), ()))[1]]
        if min(losses) > 0:  # of numbers they may be negative
            logarithmic(axes[0, -1], "y", losses)
        figure.legend(*axes[0, -1].get_legend_handles_labels(), fontsize=8, loc="outside right center")  # hides no curve
    return figure


def predictive_entropy(named: Mapping[str, tuple[Tensor, Tensor]], classes: int) -> Figure:
    """How uncertain predictions are on test items and on items of another kind, one panel per algorithm.

    Args:
        named: algorithm -> entropies (nats) of test items ``[n]`` and of outside items ``[m]``.
        classes: how many; log of it is the largest entropy.
    """
    bins = np.linspace(0, math.log(classes), 40)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(named), figsize=(2.0 * len(named) + 0.6, 2.6), sharey=True, layout="constrained", squeeze=False
        )
        for axis, (name, entropies) in zip(axes[0], named.items(), strict=True):
            for values, tint, label in zip(entropies, (COLOURS[0], COLOURS[1]), ("test items", "letters"), strict=True):
                axis.hist(values.numpy(), bins, density=True, alpha=0.6, color=tint, label=label)
            axis.set(title=name, xlabel="entropy (nats)")
            axis.title.set_fontsize(9)
        axes[0, 0].set(ylabel="density (1/nat)", yscale="log")
        axes[0, -1].legend(fontsize=8)
    return figure


def information_plane(points: Sequence[tuple[float, float]], total: float, source_entropy: float) -> Figure:
    """The bottleneck's frontier: what a code keeps of y against what it costs about x.

    Args:
        points: (I(x; t), I(t; y)) in nats, along β.
        total: I(x; y).
        source_entropy: H(x).
    """
    rates, kept = zip(*sorted(points), strict=True)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.8, 3.6), layout="constrained")
        axis.plot(rates, kept, marker="o", ms=4, color=COLOURS[0], label="optimal codes")
        axis.axhline(total, color="grey", ls="--", lw=1, label="I(x; y)")
        limit = min(total, source_entropy)
        axis.plot([0, limit], [0, limit], color="grey", lw=1, label="I(t; y) = I(x; t)")
        axis.fill_between([0, limit, source_entropy], [0, limit, limit], 1.12 * total, color="grey", alpha=0.15, lw=0)
        axis.set(xlabel="rate I(x; t) (nats)", ylabel="kept I(t; y) (nats)", xlim=(0, None), ylim=(0, 1.12 * total))
        axis.legend(fontsize=8, loc="lower right")
    return figure
