"""What the pictures of all systems share; every function returns a matplotlib figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]
BESIDE = 6  # more curves have their legend beside the picture


STYLE: Any = {"figure.dpi": 120, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}


def looks(colours: Sequence[str] = COLOURS) -> Iterator[tuple[str, str]]:
    """Dash and colour of one curve after another: where the colours are used up, they come again with another dash."""
    return itertools.cycle(itertools.product(("-", "--", ":", "-."), colours))


def reliability_diagram(
    named: Mapping[str, tuple[Tensor, Tensor]], bins: int = 15, *, colours: Sequence[str] = COLOURS
) -> Figure:
    """Accuracy against confidence, above how often each confidence occurs; bins of fewer than ten items have no point.

    Args:
        named: label -> (probabilities ``[n, way]``, labels ``[n]``).
        colours: one per label.
    """
    edges = np.linspace(0, 1, bins + 1)
    many = len(named) > BESIDE
    with plt.rc_context(STYLE):
        size = (6.4 if many else 4.4, 4.8)
        figure, (top, bottom) = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=(3, 1), layout="constrained")
        top.plot([0, 1], [0, 1], color="grey", lw=1, label="perfect calibration")
        for (dash, colour), (name, (probabilities, labels)) in zip(looks(colours), named.items(), strict=False):
            confidence, prediction = (t.cpu().numpy() for t in probabilities.max(-1))
            correct = prediction == labels.cpu().numpy()
            index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
            counts = np.bincount(index, minlength=bins)
            filled = counts >= 10
            mean_confidence = np.bincount(index, confidence, minlength=bins)[filled] / counts[filled]
            accuracy = np.bincount(index, correct, minlength=bins)[filled] / counts[filled]
            top.plot(mean_confidence, accuracy, dash, marker="o", ms=4, color=colour, label=name)
            bottom.stairs(counts / counts.sum(), edges, color=colour, ls=dash)
        top.set(ylabel="accuracy (fraction)", xlim=(0, 1), ylim=(0, 1))
        if many:  # inside it would hide the curves
            figure.legend(fontsize=8, loc="outside right upper")
        else:
            top.legend(fontsize=8)
        bottom.set(xlabel="confidence (largest predicted probability)", ylabel="share of items")
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
    named: Mapping[str, Sequence[RatePoint]], *, labels: Sequence[str], rate: str, colours: Sequence[str] = COLOURS
) -> Figure:
    """Heights against rate, a panel per height, a colour per name and a marker per β.

    Args:
        named: label -> its points.
        labels: of the panels' vertical axes.
        rate: label of the horizontal axis.
        colours: one per name.
    """
    betas = sorted({point.beta for points in named.values() for point in points})
    markers = dict(zip(betas, itertools.cycle("osD^vP*X<>"), strict=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(labels), figsize=(4.5 * len(labels), 3.6), layout="constrained", squeeze=False)
        for panel, (axis, label) in enumerate(zip(axes[0], labels, strict=True)):
            for colour, (name, points) in zip(itertools.cycle(colours), named.items(), strict=False):
                path = sorted(points)
                axis.plot([p.rate for p in path], [p.heights[panel] for p in path], color=colour, label=name)
                for p in path:
                    look = {"marker": markers[p.beta], "color": colour, "capsize": 3, "ms": 6}
                    axis.errorbar(p.rate, p.heights[panel], p.errors[panel], **look)
            logarithmic(axis, "x", [p.rate for points in named.values() for p in points])
            axis.set(xlabel=rate, ylabel=label)
        for beta, marker in markers.items():
            axes[0, -1].plot([], [], marker=marker, color="grey", ls="", label=f"β = {beta:g}")
        figure.legend(*axes[0, -1].get_legend_handles_labels(), fontsize=8, loc="outside right center")
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
