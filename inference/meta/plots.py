"""The pictures of a SIB run, one function each; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from data.episodes import Episode
from inference.evaluation.figures import COLOURS, STYLE, RatePoint, logarithmic, looks, rate_curves, show_image
from inference.evaluation.posterior import TaskPosterior
from inference.meta.report import TaskRecord, final_records


def training_curves(history: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Figure:
    """Validation accuracy, distortion and rate over training.

    Args:
        history: stage -> scalar name -> (steps, values).
    """
    panels = (
        ("val/accuracy", "validation accuracy (%)", 100),
        ("val/distortion", "validation distortion (nats per task)", 1),
        ("val/rate", "validation rate (nats per task)", 1),
    )
    with plt.rc_context(STYLE):
        height = max(3.2, 0.5 + 0.2 * len(history))  # the legend has a line for each
        figure, axes = plt.subplots(1, 3, figsize=(11, height), layout="constrained")
        for axis, (name, label, factor) in zip(axes, panels, strict=True):
            for (dash, colour), (stage, scalars) in zip(looks(), history.items(), strict=False):
                if name in scalars:
                    steps, values = scalars[name]
                    axis.plot(steps, factor * np.asarray(values), dash, color=colour, marker=".", label=stage)
            axis.set(xlabel="training step", ylabel=label)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)  # hides no curve
        rates = [value for scalars in history.values() for value in scalars.get(panels[2][0], ((), (1.0,)))[1]]
        logarithmic(axes[2], "y", rates)
    return figure


def accuracy_by_step(records: Sequence[TaskRecord]) -> Figure:
    """Test accuracy of the selected learner before and after each of its K steps, with 95 % intervals.

    The dashed line is the same trained with K = 0; dotted lines are other methods.
    """
    chosen = [r for r in records if r.selected]
    others = [r for r in final_records(records) if r.method not in {c.method for c in chosen}]
    trained = max((r.trained_steps for r in chosen), default=0)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
        for colour, balanced in zip(COLOURS, (True, False), strict=False):
            rows = [r for r in chosen if r.balanced is balanced and r.trained_steps == trained]
            if not rows:
                continue
            name = "balanced" if balanced else "imbalanced"
            values, errors = [100 * r.accuracy for r in rows], [100 * r.ci95 for r in rows]
            axis.errorbar([r.steps for r in rows], values, errors, marker="o", capsize=3, color=colour, label=name)
            for reference in (r for r in chosen if r.balanced is balanced and r.trained_steps < trained):
                label = f"{name}, trained with K = {reference.trained_steps}"
                axis.axhline(100 * reference.accuracy, ls="--", color=colour, alpha=0.7, label=label)
            for other in (r for r in others if r.balanced is balanced):
                axis.axhline(100 * other.accuracy, ls=":", color=colour, alpha=0.7, label=f"{name}, {other.variant}")
        axis.set(xlabel="synthetic gradient steps K", ylabel="test accuracy (%)")
        axis.margins(y=0.25)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.legend(fontsize=7, loc="upper left")
    return figure


def objective_by_step(records: Sequence[TaskRecord]) -> Figure:
    """distortion + β · rate of balanced test tasks after every step, a panel per predictor and a curve per β.

    Hollow markers are guides trained with K = 0; the dotted line is what guessing costs.

    Args:
        records: with an objective, of every number of steps.
    """
    names, betas = sorted({r.predictor for r in records}), sorted({r.beta or 0.0 for r in records})
    trained = max(r.trained_steps for r in records)
    with plt.rc_context(STYLE):
        size = (1.6 + 3.6 * len(names), 3.6)
        figure, axes = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axis, name in zip(axes[0], names, strict=True):
            for colour, beta in zip(COLOURS, betas, strict=False):
                rows = [r for r in records if r.predictor == name and (r.beta or 0.0) == beta]
                own = [r for r in rows if r.trained_steps == trained]
                label = f"β = {beta:g}"
                axis.plot([r.steps for r in own], [r.objective for r in own], marker="o", color=colour, label=label)
                for reference in (r for r in rows if r.trained_steps < trained):
                    axis.plot([0], [reference.objective], "o", ms=9, mfc="none", color=colour)
            axis.axhline(records[0].guess, ls=":", color="black", label="guessing")
            axis.plot([], [], "o", ms=9, mfc="none", color="grey", label="trained with K = 0")
            axis.set(title=name, xlabel="synthetic gradient steps K")
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes[0, 0].set_ylabel("distortion + β · rate (nats per task)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def task_sheet(images: Episode, posterior: TaskPosterior, *, names: Sequence[str] = (), shown: int = 6) -> Figure:
    """One task: its support images, and its most and least certain queries with predicted class probabilities.

    Args:
        images: one task of uint8 images with query labels, tensors of shape ``[1, n, channels, height, width]``.
        posterior: of that task.
        names: the classes' names.
        shown: queries per row.
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
            5, columns, figsize=(1.35 * columns, 6.6), height_ratios=(1, 1, 0.6, 1, 0.6), layout="constrained"
        )
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        for c, index in enumerate(first_of_class):
            show_image(axes[0, c], images.support_x[0, index])
            axes[0, c].set_title(shorten(names[c]) if names else f"class {c}", fontsize=7, color=COLOURS[c % 10])
        for row, chosen in ((1, order[:shown]), (3, order[-shown:])):
            for column, query in enumerate(chosen):
                show_image(axes[row, column], images.query_x[0, query])
                bars = axes[row + 1, column]
                bars.bar(range(way), probabilities[query].tolist(), color=[COLOURS[c % 10] for c in range(way)])
                bars.set_ylim(0, 1)
                bars.set_xticks([int(labels[query])], ["true"], fontsize=7)
                right = int(probabilities[query].argmax()) == int(labels[query])
                bars.set_title(f"{float(probabilities[query].max()):.2f} {'✓' if right else '✗'}", fontsize=8, pad=2)
        titles = ("support", "most certain\nqueries", "p(class)", "least certain\nqueries", "p(class)")
        for row, text in enumerate(titles):
            axes[row, 0].set_ylabel(text, fontsize=8)
    return figure


def shorten(name: str, width: int = 22) -> str:
    """A class name in at most two short lines."""
    words, lines = name.replace("/", " ").replace("_", " ").lower().split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width // 2 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[-2:])


def weight_posterior(before: TaskPosterior, after: TaskPosterior, query_y: Tensor, *, draws: int = 200) -> Figure:
    """Posterior draws of one task's class weights before and after the K steps, with the queries, in two dimensions.

    The plane is spanned by the two leading principal directions of the class weights' means after the steps.

    Args:
        query_y: ``[1, query]`` labels, which colour the queries.
    """
    loc = after.loc[0]
    center = loc.mean(0)
    plane = torch.linalg.svd(loc - center, full_matrices=False).Vh[:2]

    def project(points: Tensor) -> np.ndarray:
        return ((points - center) @ plane.T).detach().cpu().numpy()

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharex=True, sharey=True, layout="constrained")
        steps = getattr(after.guide, "steps", 0)
        titles = ("before: θ⁰ from the support", f"after {steps} step{'' if steps == 1 else 's'} on the unlabelled queries")
        for axis, posterior, title in zip(axes, (before, after), titles, strict=True):
            queries = project(posterior.query_x[0])
            weights = project(posterior.sample(draws)[:, 0])
            for c in range(weights.shape[1]):
                colour = COLOURS[c % 10]
                mine = query_y[0].cpu().numpy() == c
                axis.scatter(*queries[mine].T, s=14, color=colour, alpha=0.45, lw=0)
                axis.scatter(*weights[:, c].T, s=3, color=colour, alpha=0.35, lw=0)
                axis.scatter(*project(posterior.loc[0])[c], s=110, marker="X", color=colour, edgecolor="black")
            accuracy = (posterior.probabilities().argmax(-1).cpu() == query_y.cpu()).float().mean()
            axis.set(title=f"{title} ({100 * float(accuracy):.0f} % right)", xlabel="first principal direction")
            axis.title.set_fontsize(10)
        axes[0].set_ylabel("second principal direction")
        for marker, size, label in (
            ("o", 14, "query (colour: true class)"),
            (".", 9, "posterior draw"),
            ("X", 80, "mean"),
        ):
            axes[1].scatter([], [], s=size, marker=marker, color="grey", label=label)
        axes[1].legend(fontsize=8)
    return figure


def rate_distortion_curve(records: Sequence[TaskRecord]) -> Figure:
    """Distortion and accuracy (with 95 % intervals) against rate, one curve per predictor, one marker per β, from K-step test
    records."""
    named: dict[str, list[RatePoint]] = {name: [] for name in sorted({r.predictor for r in records})}
    for r in records:
        heights, errors = (r.distortion, 100 * r.accuracy), (None, 100 * r.ci95)
        named[r.predictor].append(RatePoint(r.beta or 0.0, r.rate or 0.0, heights, errors))
    labels = ("distortion (nats per task)", "test accuracy (%)")
    return rate_curves(named, labels=labels, rate="rate (nats per task)")
