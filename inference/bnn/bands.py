"""The picture of a one-dimensional regression: every posterior as functions, near the data and far from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from data.regression import curve
from inference.bnn.comparison import DATA_WIDTHS, chains_of
from inference.bnn.plots import style
from inference.bnn.posterior import NetworkPosterior
from inference.evaluation.style import STYLE, headline

NEAR = 0.25  # widths of the data beside them in the upper row
WIDEST = 10.5  # inches: text in a wider picture is too small on a page
DRAWN, KEPT = 400, 8  # functions that a band is made of, and those that are drawn


class Band(NamedTuple):
    """Functions of a posterior at ``[n]`` inputs.

    Attributes:
        draws: ``[S, n]``.
        noise: variance of the observations around them, ``[n]``.
    """

    draws: Tensor
    noise: Tensor

    def edges(self, *, noise: bool) -> tuple[Tensor, Tensor]:
        """Mean ± 2 standard deviations, of the function or of observations."""
        mean, variance = self.draws.mean(0), self.draws.var(0, correction=0) + self.noise * noise
        return mean - 2 * variance.sqrt(), mean + 2 * variance.sqrt()


def band(posterior: NetworkPosterior, grid: Tensor) -> Band:
    """The posterior at inputs ``[n]``."""
    with torch.no_grad():
        observation = posterior.observation(posterior.outputs(grid[:, None], num_samples=DRAWN))
    return Band(observation.mean.cpu(), observation.variance.mean(0).cpu())


def regression_bands(named: Mapping[str, NetworkPosterior], x: Tensor, y: Tensor, *, about: str = "") -> Figure:
    """One column per algorithm, near the data and up to two of their widths away: draws of the function, bands of ±2 standard
    deviations, and in every panel the edges of NUTS's band, where it is among them.

    Args:
        named: algorithm -> posterior.
        x, y: training data, ``[n, 1]`` and ``[n]``.
        about: the run, for the title.
    """
    low, high = float(x.min()), float(x.max())
    reference = chains_of(named)
    with plt.rc_context(STYLE):
        size = (min(2.4 * len(named), WIDEST) + 0.5, 6.3)
        figure, axes = plt.subplots(2, len(named), figsize=size, sharey="row", layout="constrained", squeeze=False)
        for row, widths in zip(axes, (NEAR, DATA_WIDTHS), strict=True):
            grid = torch.linspace(low - widths * (high - low), high + widths * (high - low), 240)
            known = None if reference is None else band(reference, grid)
            for axis, (name, posterior) in zip(row, named.items(), strict=True):
                draw_band(axis, grid, band(posterior, grid), style(name).colour)
                if known is not None:
                    for edge in known.edges(noise=True):
                        axis.plot(grid, edge, color="black", lw=1.1, ls=(0, (5, 2)))
                axis.plot(grid, curve(grid), color="grey", ls=":", lw=1.3)
                axis.scatter(x[:, 0], y, s=5, color="black", lw=0, zorder=3)
            row[0].set(ylabel="y", ylim=limits(y, known))
        for axis, name in zip(axes[0], named, strict=True):
            axis.set_title(name, fontsize=10)
        for axis in axes[1]:
            axis.set_xlabel("x")
        headline(figure, "Which functions do the posteriors hold possible, near the data and far from them?", about)
        figure.legend(handles=key(reference is not None), ncols=3, loc="outside lower center")
    return figure


def draw_band(axis: Axes, grid: Tensor, shown: Band, tint: str) -> None:
    """Observations, the function, and a few draws of it, at inputs ``grid`` ``[n]``, in the colour ``tint``."""
    axis.fill_between(grid, *shown.edges(noise=True), color=tint, alpha=0.15, lw=0)
    axis.fill_between(grid, *shown.edges(noise=False), color=tint, alpha=0.35, lw=0)
    axis.plot(grid, shown.draws[:KEPT].T, color=tint, lw=0.5, alpha=0.7)


def limits(y: Tensor, known: Band | None) -> tuple[float, float]:
    """Of the axis: those of the targets, and of NUTS's band where there is one, with half as much again."""
    edges = torch.cat([y.cpu(), *(known.edges(noise=True) if known is not None else ())])
    low, high = float(edges.min()), float(edges.max())
    margin = 0.25 * (high - low) or 1.0
    return low - margin, high + margin


def key(reference: bool) -> list[Line2D | Patch]:
    """What the lines and areas are, those of NUTS included where it is the ``reference``."""
    dots: list[Line2D | Patch] = [Line2D([], [], color="black", marker="o", ms=3, ls="", label="training data")]
    lines = [Line2D([], [], color="grey", ls=":", label="true function")]
    nuts = [Line2D([], [], color="black", lw=1.1, ls=(0, (5, 2)), label="±2 sd of nuts, with noise")] if reference else []
    areas = [
        Patch(color="grey", alpha=a, lw=0, label=f"±2 sd{text}")
        for a, text in ((0.5, " of the function"), (0.2, " with noise"))
    ]
    return [*dots, *lines, *nuts, *areas]
