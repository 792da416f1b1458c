"""Pictures of meta-learners on regression tasks; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from pyro.distributions import validation_enabled
from torch import Tensor

from data.curves import EXTENT, raw_sinusoid_tasks, sinusoid_or_line_tasks
from data.episodes import Episode
from data.regression import network_prior, network_tasks
from data.seeding import mix_seed
from inference.evaluation.predictive import predictive
from inference.evaluation.style import STYLE, headline, key, looks
from inference.meta.comparison_plots import named
from inference.meta.regression_fits import Fit
from inference.meta.regression_tasks import AMBIGUOUS, HIDDEN, Problem

DRAWN, POINTS, SHOWN, PER_ROW = 200, 200, 3, 4
PICTURE = 11  # a stream of tasks
CENTRAL = 1.6449  # standard deviations to both sides of a Gaussian's mean that hold 90 % of it


def regret_against_time(records: Sequence[Any], *, about: str = "") -> Figure:
    """Regret of each method against what a task costs it; NLL where there is no reference.

    Args:
        records: one for each method, of the same tasks; those without a finite number are left out.
        about: the run, for the title.
    """
    known = any(record.regret is not None for record in records)
    records = [record for record in records if (record.regret if known else record.nll) is not None]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.6, 4.4 + 0.12 * len(records)), layout="constrained")
        for (colour, marker, _), r in zip(looks(), records, strict=False):
            look: dict[str, Any] = {"color": colour, "marker": marker, "ls": "", "ms": 7, "capsize": 2, "label": named(r)}
            axis.errorbar(r.adapt_ms, r.regret if known else r.nll, r.regret_ci95 if known else None, **look)
        axis.set(xscale="log", xlabel="time per task (ms), from points to predictions")
        if known:
            axis.axhline(0, color="black", lw=0.8)
            axis.set_yscale("symlog", linthresh=0.01)
            lowest = min(record.regret - (record.regret_ci95 or 0) for record in records)
            axis.set_ylim(bottom=min(-0.005, 1.3 * lowest))
            axis.set_ylabel(f"regret to {records[0].reference} (nats per query), 95 % intervals")
        else:
            axis.set_ylabel("NLL (nats per query)")
        headline(figure, "What does a better prediction cost?", about)
        key(figure, [axis])
    return figure


def curves(fits: Mapping[str, Fit], problem: Problem, *, seed: int = 0) -> Figure:
    """What each method makes of the same few tasks: the mean of its predictive and where 90 % of it lies.

    Args:
        fits: by the method's name.
        problem: of single inputs.
        seed: of the tasks.
    """
    tasks, truth = pictured(problem, seed)
    x = tasks.query_x[0, :, 0]
    rows = -(-len(fits) // PER_ROW)
    with plt.rc_context(STYLE):
        shape: dict[str, Any] = {
            "nrows": rows,
            "ncols": min(PER_ROW, len(fits)),
            "squeeze": False,
            "sharex": True,
            "sharey": True,
        }
        figure, axes = plt.subplots(**shape, figsize=(3 * shape["ncols"], 2.3 * rows + 0.8), layout="constrained")
        for axis, (name, fit) in zip(axes.flat, fits.items(), strict=False):
            mean, spread = band(fit, tasks)
            for t, (colour, *_) in zip(range(SHOWN), looks(), strict=False):
                axis.fill_between(
                    x, mean[t] - CENTRAL * spread[t], mean[t] + CENTRAL * spread[t], color=colour, alpha=0.2, lw=0
                )
                axis.plot(x, mean[t], color=colour)
                axis.plot(x, truth[t], color=colour, ls=":", lw=1)
                axis.plot(tasks.support_x[t, :, 0], tasks.support_y[t], "o", color=colour, ms=3)
            axis.set_title(name)
        for axis in axes.flat[len(fits) :]:
            axis.set_axis_off()
        reach = 1.4 * float(truth[:SHOWN].abs().max()) + 0.2
        axes[0, 0].set(ylim=(-reach, reach))
        figure.supxlabel("input x", fontsize=10)
        figure.supylabel("target y", fontsize=10)
        about = (
            f"{problem.name}, {problem.shot} points (dots) of {SHOWN} tasks; dotted: the task; bands: mean ± 1.64 deviations"
        )
        headline(figure, f"What does each method make of {problem.shot} points?", about)
    return figure


def pictured(problem: Problem, seed: int) -> tuple[Episode, Tensor]:
    """A few tasks whose queries are a grid, and what is true there without noise, ``[tasks, points]``.

    Two draws of one seed have the same tasks: noise is drawn last.
    """
    own = mix_seed(seed, PICTURE)

    def drawn(noise: float) -> Episode:
        sizes: dict[str, Any] = {"support": problem.shot, "noise": noise, "seed": own}
        if problem.name == "sinusoids":
            return raw_sinusoid_tasks(SHOWN, queries=POINTS, **sizes)
        if problem.name == AMBIGUOUS:
            return sinusoid_or_line_tasks(SHOWN, queries=POINTS, **sizes)
        return network_tasks(SHOWN, POINTS, *network_prior(HIDDEN), **sizes)

    noisy, clean = drawn(problem.noise), drawn(0.0)
    assert clean.query_y is not None
    extent = EXTENT if problem.name in ("sinusoids", AMBIGUOUS) else 3.0
    order = clean.query_x[..., 0].argsort(-1)
    truth = clean.query_y.gather(-1, order)
    x = clean.query_x[..., 0].gather(-1, order)
    grid = torch.linspace(-extent, extent, POINTS)
    return noisy._replace(query_x=grid.expand(SHOWN, -1)[..., None], query_y=None), interpolate(grid, x, truth)


def interpolate(grid: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Straight lines between points ``x``, ``y`` ``[tasks, n]``, x ascending, at the ``grid`` ``[m]``: ``[tasks, m]``."""
    right = torch.searchsorted(x.contiguous(), grid.expand(len(x), -1).contiguous()).clamp(1, x.shape[-1] - 1)
    (x0, x1), (y0, y1) = ((part.gather(-1, right - 1), part.gather(-1, right)) for part in (x, y))
    return y0 + (y1 - y0) * ((grid - x0) / (x1 - x0)).clamp(0, 1)


@torch.no_grad()
def band(fit: Fit, tasks: Episode) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the predictive of queries, ``[tasks, points]``."""
    with validation_enabled(False):  # steps may run away
        labels = predictive(fit.model, fit.guide, fit.embed(tasks.to(dtype=torch.float64)), num_samples=DRAWN).labels
    mean = labels.mean.mean(0)
    variance = (labels.variance + labels.mean.square()).mean(0) - mean.square()
    return mean, variance.clamp_min(0).sqrt()
