"""The pictures of a SIB run, one function each; every function returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from data.episodes import Episode
from inference.evaluation.figures import RatePoint, logarithmic, rate_curves, show_image
from inference.evaluation.posterior import TaskPosterior
from inference.evaluation.style import BLUE, STYLE, VERMILLION, headline, key, look, looks
from inference.meta.report import TaskRecord, final_records

TRANSDUCTIVE = ("batch-norm",)
"""Methods beside SIB that see the queries."""
RATE = "val/rate"


def training_curves(history: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], *, about: str = "") -> Figure:
    """Validation accuracy, distortion and, of guides whose posterior of a task has one, rate over training.

    Args:
        history: name of a guide -> scalar name -> (steps, values).
        about: the run, for the title.
    """
    panels = (
        ("val/accuracy", "accuracy (%)", 100),
        ("val/distortion", "distortion (nats per task)", 1),
        (RATE, "rate (nats per task)", 1),
    )
    rates = [value for scalars in history.values() if any(scalars.get(RATE, ((), ()))[1]) for value in scalars[RATE][1]]
    shown = panels if rates else panels[:2]
    with plt.rc_context(STYLE):
        height = 3.9 + 0.08 * len(history)  # the legend has a line for each
        figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), height), layout="constrained")
        for axis, (name, label, factor) in zip(axes, shown, strict=True):
            for (colour, marker, dash), (stage, scalars) in zip(looks(), history.items(), strict=False):
                steps, values = scalars.get(name, ((), ()))
                if len(steps) and (name != RATE or any(values)):
                    axis.plot(steps, factor * np.asarray(values), dash, color=colour, marker=marker, ms=4, label=stage)
            axis.set(xlabel="training step", ylabel=label)
        if rates:
            logarithmic(axes[2], "y", rates)
        headline(figure, "Do validation tasks gain while the guides train?", about)
        key(figure, axes)
    return figure


def accuracy_by_step(records: Sequence[TaskRecord], *, about: str = "") -> Figure:
    """Test accuracy of the selected learner before and after each of its K steps, with 95 % intervals; a panel for balanced
    tasks and one for imbalanced ones.

    The dashed line is the same trained with K = 0, which is inductive: it never sees the queries. Other methods have lines of
    their own, and chance is dotted.

    Args:
        records: of test tasks.
        about: the run, for the title.
    """
    chosen = [r for r in records if r.selected]
    others = [r for r in final_records(records) if r.method not in {c.method for c in chosen}]
    trained = max((r.trained_steps for r in chosen), default=0)
    shown = [balanced for balanced in (True, False) if any(r.balanced is balanced for r in chosen)]
    with plt.rc_context(STYLE):
        size = (1.2 + 3.1 * len(shown), 4.8)
        figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axis, balanced in zip(axes[0], shown, strict=True):
            own = [r for r in chosen if r.balanced is balanced]
            rows = [r for r in own if r.trained_steps == trained]
            values, errors = [100 * r.accuracy for r in rows], [100 * r.ci95 for r in rows]
            line = {"marker": "o", "capsize": 3, "color": BLUE, "label": "after each step on the unlabelled queries"}
            axis.errorbar([r.steps for r in rows], values, errors, **line)
            for r, value in zip(rows, values, strict=True):
                axis.annotate(f"{value:.1f}", (r.steps, value), (0, 7), textcoords="offset points", ha="center", fontsize=8.5)
            last = max((r.steps for r in rows), default=trained)
            if last > trained:
                axis.axvline(trained, lw=0.8, color="grey", label=f"K = {trained}, as trained")
            for reference in (r for r in final_records(own) if r.trained_steps < trained):
                words = f"inductive: trained with K = {reference.trained_steps}"
                height = 100 * reference.accuracy
                axis.axhline(height, ls="--", lw=1.2, color=VERMILLION, label=words)
                number = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8.5, "color": VERMILLION}
                axis.annotate(f"{height:.1f}", (last + 0.35, height), (0, -3), **number)
            for style, other in zip((look(n) for n in (2, 3, 4)), (r for r in others if r.balanced is balanced), strict=False):
                words = other.method if other.method in TRANSDUCTIVE else f"{other.method} (inductive)"
                axis.axhline(100 * other.accuracy, ls="-.", lw=1.2, color=style.colour, label=words)
            if rows:
                axis.axhline(100 / rows[0].way, ls=":", color="black", lw=1.2, label=f"chance: 1 in {rows[0].way}")
            axis.set(xlabel="steps K", title="balanced tasks" if balanced else "imbalanced tasks", xlim=(-0.35, last + 0.35))
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes[0, 0].set_ylabel("test accuracy (%), 95 % intervals")
        axes[0, 0].margins(y=0.12)
        headline(figure, "What do the steps on unlabelled queries gain?", about)
        key(figure, axes[0], columns=1)
    return figure


def objective_by_step(records: Sequence[TaskRecord], *, about: str = "") -> Figure:
    """distortion + β · rate of balanced test tasks after every step, a panel per predictor and a curve per β.

    Hollow markers are guides trained with K = 0; the dotted line is what guessing costs.

    Args:
        records: with an objective, of every number of steps.
        about: the run, for the title.
    """
    names, betas = sorted({r.predictor for r in records}), sorted({r.beta or 0.0 for r in records})
    trained = max(r.trained_steps for r in records)
    with plt.rc_context(STYLE):
        size = (1.2 + 3.6 * len(names), 4.2)
        figure, axes = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axis, name in zip(axes[0], names, strict=True):
            for (colour, marker, dash), beta in zip(looks(), betas, strict=False):
                rows = [r for r in records if r.predictor == name and (r.beta or 0.0) == beta]
                own = [r for r in rows if r.trained_steps == trained]
                line = {"marker": marker, "color": colour, "label": f"β = {beta:g}"}
                axis.plot([r.steps for r in own], [r.objective for r in own], dash, **line)
                for reference in (r for r in rows if r.trained_steps < trained):
                    axis.plot([0], [reference.objective], marker, ms=10, mfc="none", color=colour)
            axis.axhline(records[0].guess, ls=":", color="black", label="guessing")
            axis.plot([], [], "o", ms=10, mfc="none", color="grey", label="inductive: trained with K = 0")
            axis.set(title=f"predictor: {name}", xlabel="steps K on the unlabelled queries")
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes[0, 0].set_ylabel("distortion + β · rate (nats per task)")
        headline(figure, "Does every step lower what the guide was trained to lower?", about)
        key(figure, axes[0])
    return figure


def task_sheet(
    images: Episode, posterior: TaskPosterior, *, names: Sequence[str] = (), shown: int = 6, about: str = ""
) -> Figure:
    """One task: its support images, and its most and least certain queries with predicted class probabilities.

    Args:
        images: one task of uint8 images with query labels, tensors of shape ``[1, n, channels, height, width]``.
        posterior: of that task.
        names: the classes' names.
        shown: queries per row.
        about: the run, for the title.
    """
    probabilities = posterior.probabilities()[0]
    way = probabilities.shape[-1]
    order = probabilities.max(-1).values.argsort(descending=True).tolist()
    assert images.query_y is not None
    labels = images.query_y[0]
    first_of_class = [int((images.support_y[0] == c).nonzero()[0]) for c in range(min(way, 8))]
    columns = max(shown, len(first_of_class))
    with plt.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes = plt.subplots(
            5, columns, figsize=(1.35 * columns, 7.4), height_ratios=(1, 1, 0.6, 1, 0.6), layout="constrained"
        )
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        for c, index in enumerate(first_of_class):
            show_image(axes[0, c], images.support_x[0, index])
            axes[0, c].set_title(f"{c + 1}: {shorten(names[c])}" if names else f"class {c + 1}", fontsize=7.5)
        for axis in axes[0, len(first_of_class) :]:
            axis.set_visible(False)
        for row, chosen in ((1, order[:shown]), (3, order[-shown:])):
            for column, query in enumerate(chosen):
                show_image(axes[row, column], images.query_x[0, query])
                draw_probabilities(axes[row + 1, column], probabilities[query], int(labels[query]))
        titles = (
            "one labelled image\nof each class",
            "most certain\nqueries",
            "p(class)",
            "least certain\nqueries",
            "p(class)",
        )
        for row, text in enumerate(titles):
            axes[row, 0].set_ylabel(text, fontsize=8.5)
        headline(figure, "Which class is each query, and how sure is the posterior?", about)
        figure.supxlabel("▲ true class; ✓ and ✗: whether the most probable class is the true one", fontsize=8.5)
    return figure


def draw_probabilities(axis: Axes, probabilities: Tensor, true: int) -> None:
    """Class ``probabilities`` ``[way]`` as bars with the classes' numbers below, the ``true`` one marked."""
    way, best = len(probabilities), int(probabilities.argmax())
    bars = axis.bar(range(way), probabilities.tolist(), color=["0.7" if c != true else BLUE for c in range(way)])
    for bar in (b for c, b in enumerate(bars) if c == true):
        bar.set_hatch("//")
    axis.set_ylim(0, 1)
    numbers = range(way) if way <= 10 else [true]
    axis.set_xticks(list(numbers), [f"{c + 1}\n▲" if c == true else f"{c + 1}" for c in numbers], fontsize=8)
    axis.tick_params(length=0, pad=1)
    axis.set_title(f"{float(probabilities.max()):.2f} {'✓' if best == true else '✗'}", fontsize=9, pad=2)


def shorten(name: str, width: int = 16) -> str:
    """A class name in lines of at most ``width`` letters where its words allow it, the last three of them."""
    return "\n".join(textwrap.wrap(name.replace("/", " ").replace("_", " ").lower(), width)[-3:])


def weight_posterior(
    before: TaskPosterior,
    after: TaskPosterior,
    query_y: Tensor,
    *,
    draws: int = 200,
    names: Sequence[str] = (),
    about: str = "",
) -> Figure:
    """Posterior draws of one task's class weights before and after the K steps, with the queries, in two dimensions.

    The plane is spanned by the two leading principal directions of the class weights' means after the steps.

    Args:
        before, after: the posteriors.
        query_y: ``[1, query]`` labels, which give the queries' colours and markers.
        draws: of each posterior.
        names: the classes' names.
        about: the run, for the title.
    """
    loc = after.loc[0]
    center = loc.mean(0)
    plane = torch.linalg.svd(loc - center, full_matrices=False).Vh[:2]

    def project(points: Tensor) -> np.ndarray:
        return ((points - center) @ plane.T).detach().cpu().numpy()

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
        steps = getattr(after.guide, "steps", 0)
        titles = ("from the labelled images alone", f"after {steps} step{'' if steps == 1 else 's'} on the unlabelled queries")
        for axis, posterior, title in zip(axes, (before, after), titles, strict=True):
            queries, means = project(posterior.query_x[0]), project(posterior.loc[0])
            weights = project(posterior.sample(draws)[:, 0])
            for c, (colour, marker, _) in zip(range(weights.shape[1]), looks(), strict=False):
                mine = query_y[0].cpu().numpy() == c
                axis.scatter(*weights[:, c].T, s=3, color=colour, alpha=0.3, lw=0)
                label = f"{c + 1}: {names[c].lower()}" if names else f"class {c + 1}"
                axis.scatter(*queries[mine].T, s=20, color=colour, marker=marker, alpha=0.6, lw=0, label=label)
                axis.scatter(*means[c], s=170, marker="o", color="white", edgecolor=colour, lw=2, zorder=3)
                axis.annotate(f"{c + 1}", means[c], ha="center", va="center", fontsize=9, fontweight="bold", zorder=4)
            accuracy = (posterior.probabilities().argmax(-1).cpu() == query_y.cpu()).float().mean()
            axis.set(title=f"{title}: {100 * float(accuracy):.0f} % right", xlabel="first principal direction")
        axes[0].set_ylabel("second principal direction")
        axes[0].scatter([], [], s=3, color="grey", label="draw of a class weight (dots)")
        axes[0].scatter([], [], s=110, color="white", edgecolor="grey", lw=2, label="mean of a class weight")
        headline(
            figure, "Where may the weights of this task's classes be? (Large markers: queries, by their true class)", about
        )
        key(figure, axes)
    return figure


def rate_distortion_curve(records: Sequence[TaskRecord], *, about: str = "") -> Figure:
    """Distortion and accuracy (with 95 % intervals) against rate, one curve per predictor, one marker per β, from K-step test
    ``records``; ``about`` is the run, for the title."""
    named: dict[str, list[RatePoint]] = {name: [] for name in sorted({r.predictor for r in records})}
    for r in records:
        heights, errors = (r.distortion, 100 * r.accuracy), (None, 100 * r.ci95)
        named[r.predictor].append(RatePoint(r.beta or 0.0, r.rate or 0.0, heights, errors))
    labels = ("distortion (nats per task)", "test accuracy (%), 95 % intervals")
    question = "What does a nat of rate buy?"
    return rate_curves(named, labels=labels, rate="rate (nats per task)", question=question, about=about)
