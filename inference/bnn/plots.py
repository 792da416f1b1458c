"""The pictures of a β-BNN run, one function each; every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from inference.bnn.algorithms import Algorithm
from inference.bnn.report import BnnRecord
from inference.evaluation.figures import RatePoint, logarithmic, rate_curves
from inference.evaluation.style import BLUE, SKY, STYLE, VERMILLION, Look, headline, key, look

PANELS = 5  # a row holds no more


def style(algorithm: str) -> Look:
    """Each algorithm has its own look in all pictures."""
    return look(list(Algorithm).index(Algorithm(algorithm)))


def rate_distortion_curve(records: Sequence[BnnRecord], *, about: str = "") -> Figure:
    """Distortion on the training data and NLL on validation data against rate, one curve per algorithm, one marker per β, from
    validation ``records``; ``about`` is the run, for the title."""
    named: dict[str, list[RatePoint]] = {r["algorithm"]: [] for r in records}
    for r in records:
        heights = (r["distortion"] / r["items"], r["nll"])
        named[r["algorithm"]].append(RatePoint(r["beta"], r["rate"] or r["mixture_rate"] or 0.0, heights, (None, None)))
    labels = ("distortion (nats per training item)", "validation NLL (nats per item)")
    question = "Which β do validation data choose, and what does a nat of rate buy?"
    styles = [style(name) for name in named]
    return rate_curves(named, labels=labels, rate="rate KL(q ‖ m) (nats)", question=question, about=about, styles=styles)


def learning_curves(
    history: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    records: Sequence[BnnRecord] = (),
    *,
    about: str = "",
) -> Figure:
    """Accuracy, where targets are classes, and NLL on test items (at most 2000) over each posterior's own epochs, by few draws,
    and at the end what the table says, on all items by all draws.

    Args:
        history: algorithm -> scalar name -> (epochs, values).
        records: of the table.
        about: the run, for the title.
    """
    known = (("accuracy", 100, "test accuracy (%)"), ("nll", 1, "test NLL (nats per item)"))
    panels = [panel for panel in known if any(f"test/{panel[0]}" in scalars for scalars in history.values())]
    with plt.rc_context(STYLE):
        size = (4.5 * max(len(panels), 1), 4.2)
        figure, axes = plt.subplots(1, max(len(panels), 1), figsize=size, layout="constrained", squeeze=False)
        for axis, (name, factor, label) in zip(axes[0], panels, strict=False):
            for algorithm, scalars in history.items():
                colour, marker, dash = style(algorithm)
                epochs, values = scalars.get(f"test/{name}", ((), ()))
                if len(epochs):
                    axis.plot(epochs, factor * np.asarray(values), dash, color=colour, marker=marker, ms=4, label=algorithm)
                for final in (r[name] for r in records if r["algorithm"] == algorithm and len(epochs)):  # type: ignore[literal-required]
                    axis.plot(max(epochs), factor * final, marker, ms=11, mfc="none", color=colour)
            axis.set(xlabel="epochs of each posterior", ylabel=label)
        losses = [value for scalars in history.values() for value in scalars.get("test/nll", ((), ()))[1]]
        if losses and min(losses) > 0:  # of numbers they may be negative
            logarithmic(axes[0, -1], "y", losses)
        if records:
            axes[0, -1].plot([], [], "o", ms=11, mfc="none", color="grey", label="the table: all items and draws")
        headline(figure, "How do predictions of test items come about, epoch by epoch?", about)
        key(figure, axes[0])
    return figure


def predictive_entropy(
    named: Mapping[str, tuple[Tensor, Tensor]],
    classes: int,
    auroc: Mapping[str, float] = MappingProxyType({}),
    *,
    inside: str = "test items",
    about: str = "",
) -> Figure:
    """How uncertain predictions are on test items and on items of another kind, one panel per algorithm.

    Args:
        named: algorithm -> entropies (nats) of test items ``[n]`` and of outside items ``[m]``.
        classes: how many there are.
        auroc: algorithm -> how well the entropy tells the two apart, which stands above its panel.
        inside: what the test items are.
        about: the run, for the title.
    """
    bins = np.linspace(0, math.log(classes), 40)
    wide = min(len(named), PANELS)
    rows = -(-len(named) // wide)
    with plt.rc_context(STYLE):
        size = (1.9 * wide + 0.6, 1.3 + 2.0 * rows)
        figure, axes = plt.subplots(rows, wide, figsize=size, sharex=True, sharey=True, layout="constrained", squeeze=False)
        for axis in axes.flat[len(named) :]:
            axis.set_visible(False)
        for axis, (name, (known, unknown)) in zip(axes.flat, named.items(), strict=False):
            axis.hist(known.numpy(), bins, density=True, color=SKY, alpha=0.7, label=inside)
            line = {"histtype": "step", "color": VERMILLION, "lw": 1.6}
            axis.hist(unknown.numpy(), bins, density=True, label="letters, of which they know nothing", **line)
            told = f"\nAUROC {auroc[name]:.3f}" if name in auroc else ""
            axis.set_title(f"{name}{told}", fontsize=9)
            axis.set_yscale("log")
        for axis in axes[:, 0]:
            axis.set_ylabel("density (1/nat)")
        axes[-1, wide // 2].set_xlabel("entropy of the prediction (nats)")
        headline(figure, "Are predictions less certain of what was never seen?", about)
        key(figure, [axes.flat[0]])
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
        figure, axis = plt.subplots(figsize=(4.8, 4.2), layout="constrained")
        axis.plot(rates, kept, marker="o", ms=4, color=BLUE, label="optimal codes")
        axis.axhline(total, color="grey", ls="--", lw=1, label="I(x; y)")
        limit = min(total, source_entropy)
        axis.plot([0, limit], [0, limit], color="grey", lw=1, label="I(t; y) = I(x; t)")
        axis.fill_between([0, limit, source_entropy], [0, limit, limit], 1.12 * total, color="grey", alpha=0.15, lw=0)
        axis.set(xlabel="rate I(x; t) (nats)", ylabel="kept I(t; y) (nats)", xlim=(0, None), ylim=(0, 1.12 * total))
        headline(figure, "What does the best code of x keep of y, at each rate?")
        key(figure, [axis])
    return figure
