"""Pictures of the checks; every function returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.diagnostics.calibration import Calibration
from inference.diagnostics.findings import GOOD_K, Finding
from inference.evaluation.figures import logarithmic
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.style import BLUE, GREEN, STYLE, VERMILLION, headline, key, looks

BINS = 20
PANELS = 6  # a row holds no more
LEAST_K = -0.5  # smaller ones are as good
LEAST_REGRET = 0.01  # nats per query: below, the axis is linear


def rank_panels(named: Mapping[str, Calibration]) -> Figure:
    """Ranks of each posterior: the histogram of its worst coordinate, above how far the empirical distributions of all
    coordinates are from the uniform one; grey is where a right posterior stays in, at all points and coordinates at once. Each
    column has a scale of its own, by which a curve that leaves the band is seen to."""
    shown = dict(list(named.items())[:PANELS])
    width = max(5.6, 2.7 * len(shown))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(shown), figsize=(width, 5.5), squeeze=False, height_ratios=(2, 3), layout="constrained"
        )
        for column, (name, found) in zip(axes.T, shown.items(), strict=True):
            histogram(column[0], found)
            title = f"{broken(name)}\n{verdict(found)}\nworst: {found.names[worst(found)]}"
            column[0].set_title(title, fontsize=9)
            differences(column[1], found)
            column[1].set_xlabel("rank of the truth among draws\n(0: below all, 1: above all)")
        axes[0, 0].set_ylabel("simulations per bin")
        axes[1, 0].set_ylabel("ECDF of ranks − uniform")
        headline(figure, "Is the truth as often at each rank of the posterior's draws as it must be?")
        key(figure, axes[1], columns=3 if len(shown) > 2 else 1)
    return figure


def broken(name: str, width: int = 24) -> str:
    """A posterior's name in lines that fit its column."""
    return "\n".join(textwrap.wrap(name, width))


def verdict(found: Calibration) -> str:
    """In two words."""
    outside = int((~found.inside).sum())
    return f"fails: {outside} of {len(found.names)} leave" if outside else "passes"


def worst(found: Calibration) -> int:
    """The coordinate that is farthest from uniform."""
    return int(np.abs(found.distribution() - found.points).max(-1).argmax())


def histogram(axis: Any, found: Calibration) -> None:
    """Ranks of the worst coordinate with a band of simultaneous level."""
    index = worst(found)
    counts, edges = np.histogram(found.ranks[:, index].numpy() / found.draws, bins=BINS, range=(0, 1))
    tail = (1 - found.level) / (BINS * len(found.names)) / 2
    bounds = torch.distributions.Binomial(len(found.ranks), torch.tensor(1 / BINS))
    cumulative = bounds.log_prob(torch.arange(len(found.ranks) + 1.0)).exp().cumsum(0)
    axis.axhspan(float((cumulative < tail).sum()), float((cumulative < 1 - tail).sum()), color="0.88")
    axis.stairs(counts, edges, color=BLUE, fill=True, alpha=0.7)


def differences(axis: Any, found: Calibration) -> None:
    """ECDF − uniform of every coordinate; those that leave the verdict's band have dots where they are outside."""
    points, (lower, upper) = found.points, found.band()
    label = f"band that a right posterior stays in, {found.level:.0%} for all at once"
    axis.fill_between(points, lower - points, upper - points, color="0.88", label=label)
    for edge in (lower, upper):  # above the curves, which may hide the band
        axis.plot(points, edge - points, color="0.35", lw=0.8, ls=":", zorder=3)
    labelled = set[str]()
    for row, outside in zip(found.distribution(), found.leaves(), strict=True):
        words = "coordinate that leaves it, dots where it is outside" if outside.any() else "coordinate that stays inside"
        look: dict[str, Any] = {"color": BLUE, "lw": 0.8, "label": None if words in labelled else words}
        if outside.any():
            look |= {"color": VERMILLION, "marker": "o", "ms": 2.5, "markevery": outside}
        axis.plot(points, row - points, **look)
        labelled.add(words)


def regret_dots(findings: Sequence[Finding]) -> Figure:
    """Regret of each posterior with its 95 % interval; the axis is linear near 0 and logarithmic beyond."""
    shown = [finding for finding in findings if finding.regret is not None]
    found = [finding.regret for finding in shown if finding.regret is not None]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 1.9 + 0.26 * len(shown)), layout="constrained")
        for place, regret in enumerate(found):
            axis.errorbar(regret.mean, place, xerr=regret.ci95, fmt="o", color=BLUE, capsize=3)
        axis.axvline(0, color="grey", lw=1)
        if max(abs(regret.mean) + regret.ci95 for regret in found) > LEAST_REGRET:
            logarithmic(axis, "x", [0.0, *(regret.mean for regret in found)], least=LEAST_REGRET)
        error = max(regret.error for regret in found)
        if error:
            axis.axvspan(-error, error, color="0.88", label="the reference's own error, 95 %")
            key(figure, [axis])
        headline(figure, f"How much worse than {shown[0].reference} do the posteriors predict?")
        axis.set_yticks(range(len(shown)), [finding.name for finding in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlabel(f"regret against {shown[0].reference},\nnats per query, ± 95 %")
    return figure


def objective_bars(findings: Sequence[Finding]) -> Figure:
    """Objectives of posteriors between what no posterior can do better than and what guessing costs."""
    shown = [f for f in findings if f.losses is not None and f.informed_losses is not None and f.refined_losses is not None]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.6, 2.6 + 0.42 * len(shown)), layout="constrained")
        for place, finding in enumerate(shown):
            for losses, colour, marker, words in (
                (finding.informed_losses, GREEN, "|", "best Gaussian of each task, given the queries' labels"),
                (finding.refined_losses, VERMILLION, "D", "best Gaussian of each task for the posterior's own predictions"),
                (finding.losses, BLUE, "o", "the posterior, ± 95 %"),
            ):
                assert losses is not None
                error = confidence_interval(losses) if marker == "o" else None
                style = {"ms": 12, "mew": 2.5} if marker == "|" else {"ms": 6}
                axis.errorbar(
                    float(losses.mean()),
                    place,
                    xerr=error,
                    fmt=marker,
                    color=colour,
                    capsize=3,
                    label=None if place else words,
                    **style,
                )
            ends = [float(losses.mean()) for losses in (finding.informed_losses, finding.losses) if losses is not None]
            axis.plot(ends, [place, place], color="0.8", lw=4, zorder=0)
        if shown and (guess := shown[0].guess) is not None:
            axis.axvline(guess, color="grey", ls=":", label="guessing: the prior, equal probabilities")
        axis.set_yticks(range(len(shown)), [finding.name for finding in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlabel("distortion + β · rate, nats per task")
        headline(figure, "How far from the best Gaussian of each task is what the guide gives?")
        key(figure, [axis], columns=1)
    return figure


def coverage_curves(named: Mapping[str, Tensor]) -> Figure:
    """Share of true targets in central predictive intervals, less what these promise.

    Args:
        named: label -> predictive distribution functions at the targets.
    """
    nominal = np.linspace(0.02, 0.98, 49)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8.0, 4.0), layout="constrained")
        axis.axhline(0, color="grey", lw=1)
        targets = next(iter(named.values())).numel()
        chance = 1.96 * np.sqrt(nominal * (1 - nominal) / targets)
        axis.fill_between(nominal, -chance, chance, color="0.88", label=f"95 % for {targets} independent targets")
        for (colour, marker, dash), (name, levels) in zip(looks(), named.items(), strict=False):
            distance = (2 * levels.flatten().numpy() - 1).__abs__()
            share = (distance[:, None] <= nominal).mean(0)
            axis.plot(nominal, share - nominal, dash, color=colour, marker=marker, ms=4, markevery=6, label=name)
        axis.set(xlabel="probability of the central predictive interval", ylabel="share of targets inside − probability")
        headline(figure, "Do predictive intervals hold as many targets as they promise?")
        key(figure, [axis], beside=True)
    return figure


def k_strips(findings: Sequence[Finding]) -> Figure:
    """Pareto k of each task, posterior by posterior."""
    shown = [finding for finding in findings if finding.psis_k is not None]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 1.9 + 0.26 * len(shown)), layout="constrained")
        ks = [np.maximum(finding.psis_k.numpy(), LEAST_K) for finding in shown if finding.psis_k is not None]
        axis.boxplot(ks, orientation="horizontal", flierprops={"ms": 3})
        axis.axvline(GOOD_K, color=VERMILLION, lw=1, label=f"{GOOD_K}: above, draws cannot be reweighted")
        axis.set_yticks(range(1, len(shown) + 1), [finding.name for finding in shown])
        axis.invert_yaxis()
        cut = f"\n({LEAST_K:g} stands for less)" if min(k.min() for k in ks) == LEAST_K else ""
        axis.set_xlabel(f"Pareto k of each task's importance weights{cut}")
        headline(figure, "Can the posterior's draws be reweighted to the model's own posterior?")
        key(figure, [axis])
    return figure
