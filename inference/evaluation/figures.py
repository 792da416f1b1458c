"""What the pictures of all systems share; every function returns a matplotlib figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from inference.evaluation.metrics import predictive_scores
from inference.evaluation.style import MARKERS, STYLE, Look, headline, key, looks, percent

BESIDE = 6  # more curves have their legend beside the picture
LEAST_ITEMS = 10  # of a bin with a point


class Bins(NamedTuple):
    """Items by confidence, in bins of equal width.

    Attributes:
        edges: ``[bins + 1]``.
        counts: items of each bin, ``[bins]``.
        confidence, accuracy: means over the bins' items, ``[bins]``; NaN of empty bins.
        lower, upper: 95 % intervals of the accuracy, as if items were independent (Wilson's), ``[bins]``.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor, bins: int = 15) -> Bins:
        """Of class ``probabilities`` ``[n, way]`` with ``labels`` ``[n]``, in so many ``bins``."""
        edges = np.linspace(0, 1, bins + 1)
        confidence, prediction = (t.cpu().numpy() for t in probabilities.max(-1))
        index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
        counts = np.bincount(index, minlength=bins)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.bincount(index, confidence, minlength=bins) / counts
            accuracy = np.bincount(index, prediction == labels.cpu().numpy(), minlength=bins) / counts
            z = 1.96
            center = (accuracy + z**2 / (2 * counts)) / (1 + z**2 / counts)
            half = z / (1 + z**2 / counts) * np.sqrt(accuracy * (1 - accuracy) / counts + (z / (2 * counts)) ** 2)
        return cls(edges, counts, mean, accuracy, center - half, center + half)


def reliability_diagram(
    named: Mapping[str, tuple[Tensor, Tensor]],
    bins: int = 15,
    *,
    styles: Sequence[Look] = (),
    ece: Mapping[str, float] = MappingProxyType({}),
    about: str = "",
) -> Figure:
    """Accuracy against confidence, above how often each confidence occurs; bins of fewer than ten items have no point, and bars
    are 95 % intervals of independent items.

    Args:
        named: label -> (probabilities ``[n, way]``, labels ``[n]``).
        bins: of the confidence.
        styles: one per label; the usual ones where there are none.
        ece: label -> expected calibration error, a fraction, where a table has one already; else of these items.
        about: the run, for the title.
    """
    many = len(named) > BESIDE
    with plt.rc_context(STYLE):
        size = (7.4, 5.2) if many else (5.4, 5.8)
        figure, (top, bottom) = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=(3, 1), layout="constrained")
        top.plot([0, 1], [0, 1], color="grey", lw=1, label="as often right as they say")
        for (colour, marker, dash), (name, (probabilities, labels)) in zip(styles or looks(), named.items(), strict=False):
            found = Bins.of(probabilities, labels, bins)
            error = ece[name] if name in ece else predictive_scores(probabilities.cpu(), labels.cpu())["ece"]
            part = found.counts >= LEAST_ITEMS
            points, heights = found.confidence[part], found.accuracy[part]
            top.plot(points, heights, dash, marker=marker, color=colour, label=f"{name}: ECE {percent(error)}", clip_on=False)
            top.vlines(points, found.lower[part], found.upper[part], color=colour, lw=0.9, alpha=0.6)
            bottom.stairs(found.counts / found.counts.sum(), found.edges, color=colour, ls=dash)
        top.set(ylabel="accuracy (fraction), 95 % intervals", xlim=(0, 1), ylim=(0, 1))
        bottom.set(xlabel="confidence (largest predicted probability)", ylabel="share of items")
        headline(figure, "Are predictions right as often as they say?", about)
        key(figure, [top], beside=many)
    return figure


class RatePoint(NamedTuple):
    """One β of a sweep.

    Attributes:
        beta: β.
        rate: nats, 0 or more.
        heights: one per panel.
        errors: half-widths of intervals, one per panel; ``None`` where there is none.
    """

    beta: float
    rate: float
    heights: tuple[float, ...]
    errors: tuple[float | None, ...]


def rate_curves(
    named: Mapping[str, Sequence[RatePoint]],
    *,
    labels: Sequence[str],
    rate: str,
    question: str,
    about: str = "",
    styles: Sequence[Look] = (),
) -> Figure:
    """Heights against rate, a panel per height, a colour per name and a marker per β.

    Args:
        named: label -> its points.
        labels: of the panels' vertical axes.
        rate: label of the horizontal axis.
        question, about: the title.
        styles: one per name, of which colour and dash are used; the usual ones where there are none.
    """
    betas = sorted({point.beta for points in named.values() for point in points})
    markers = dict(zip(betas, itertools.cycle(MARKERS), strict=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(labels), figsize=(4.2 * len(labels), 4.2), layout="constrained", squeeze=False)
        for panel, (axis, label) in enumerate(zip(axes[0], labels, strict=True)):
            for (colour, _, dash), (name, points) in zip(styles or looks(), named.items(), strict=False):
                path = sorted(points)
                axis.plot([p.rate for p in path], [p.heights[panel] for p in path], dash, color=colour, label=name)
                for p in path:
                    drawn = {"marker": markers[p.beta], "color": colour, "capsize": 3, "ms": 6}
                    axis.errorbar(p.rate, p.heights[panel], p.errors[panel], **drawn)
            logarithmic(axis, "x", [p.rate for points in named.values() for p in points])
            axis.set(xlabel=rate, ylabel=label)
        for beta, marker in markers.items():
            axes[0, -1].plot([], [], marker=marker, color="grey", ls="", label=f"β = {beta:g}")
        headline(figure, question, about)
        key(figure, [axes[0, -1]])
    return figure


class PlainNumbers(matplotlib.ticker.LogFormatter):
    """The ticks of a logarithmic axis as plain numbers, those between powers of ten where there are few."""

    def __init__(self) -> None:
        super().__init__(minor_thresholds=(2, 0.4))

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axis: Axes, along: str, values: Sequence[float], *, least: float = 0.0) -> None:
    """Make an axis logarithmic; where a value is 0 or negative it is linear around 0, up to the power of ten below the smallest
    of the others, so that nothing is left out or moved.

    Args:
        axis: of a figure.
        along: ``"x"`` or ``"y"``.
        values: what is drawn.
        least: the linear part reaches at least as far.
    """
    ticks, set_scale = getattr(axis, f"{along}axis"), getattr(axis, f"set_{along}scale")
    if min(values) > 0:
        set_scale("log")
        ticks.set_major_formatter(PlainNumbers())
        ticks.set_minor_formatter(PlainNumbers())
        return
    smallest = min((abs(value) for value in values if value), default=1.0)
    set_scale("symlog", linthresh=max(10.0 ** math.floor(math.log10(smallest)), least))
    ticks.set_major_formatter(lambda x, _: f"{x:g}")


def show_image(axis, image: Tensor) -> None:
    """One uint8 image ``[1 or 3, height, width]``."""
    picture = image.permute(1, 2, 0).cpu().numpy()
    axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
