"""The pictures of a run on tasks over domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from data.episodes import Episode
from data.sources.domains import LetterDomains
from inference.evaluation.figures import reliability_diagram
from inference.evaluation.posterior import infer
from inference.evaluation.style import BLUE, STYLE, VERMILLION, headline
from inference.meta import plots
from inference.meta.draw import histories
from inference.meta.learner import FittedLearner
from inference.meta.report import TaskRecord, final_records
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder

SHOWN_DOMAINS, POOLED_DOMAINS = 60, 100


def domain_figures(
    fitted: Mapping[Variant, FittedLearner],
    selected: Variant,
    data: LetterDomains,
    tasks: Mapping[Variant, Episode],
    records: Sequence[TaskRecord],
    run: RunFolder,
) -> dict[str, Callable[[], Figure]]:
    """All pictures by name, each drawn when it is called; those of one guide are of the ``selected`` one.

    Args:
        fitted: guides.
        data: what drew the tasks.
        tasks: balanced test tasks, in the feature space of each guide.
        records: of validation and test.
        run: with the logs of training.
    """
    test = [record for record in records if record.split == "test"]
    about = f"{data.name}, {data.way} letters, no support"
    own = f"{about}, {selected.title}"
    drawn: dict[str, Callable[[], Figure]] = {
        "training_curves": lambda: plots.training_curves(histories(fitted, run), about=about),
        "accuracy_by_step": lambda: plots.accuracy_by_step(test, about=own),
        "reliability": lambda: reliability(fitted, selected, tasks, test, about=f"{about}, test domains"),
        "domains": lambda: domain_sheet(fitted[selected], data, about=own),
    }
    bounded = [r for r in test if r.balanced and r.objective is not None]
    if bounded and selected.steps:
        drawn["objective_by_step"] = lambda: plots.objective_by_step(bounded, about=f"{about}, balanced test tasks")
    swept = [r for r in final_records(test) if r.balanced and r.trained_steps == selected.steps and r.rate is not None]
    if len({record.beta for record in swept}) > 1:
        title = f"{about}, K = {selected.steps}, balanced test tasks"
        drawn["rate_distortion"] = lambda: plots.rate_distortion_curve(swept, about=title)
    return drawn


def reliability(
    fitted: Mapping[Variant, FittedLearner],
    selected: Variant,
    tasks: Mapping[Variant, Episode],
    test: Sequence[TaskRecord],
    *,
    about: str,
) -> Figure:
    """Accuracy against confidence, with the calibration error that the ``test`` records have: the selected guide, and its
    reference without steps."""
    errors = {record.variant: record.ece for record in final_records(test) if record.balanced}
    named, ece = {}, {}
    for variant, learner in fitted.items():
        if (variant.predictor, variant.beta) == (selected.predictor, selected.beta):
            some = tasks[variant].tasks(slice(POOLED_DOMAINS))
            assert some.query_y is not None
            probabilities = infer(learner.model, learner.guide, some).probabilities()
            named[variant.title] = probabilities.flatten(0, 1), some.query_y.flatten()
            ece[variant.title] = errors[variant.name]
    return reliability_diagram(named, ece=ece, about=about)


def domain_sheet(learner: FittedLearner, data: LetterDomains, *, about: str) -> Figure:
    """Three of the first test domains, those that gain least, the median and most: a picture of each letter, and what it is
    taken for before the first step and after the last.

    Args:
        learner: the guide.
        data: what draws the domains.
        about: the run, for the title.
    """
    tasks = data.tasks("test", slice(0, SHOWN_DOMAINS), learner.spec.queries)
    assert tasks.query_y is not None
    path = learner.trajectory(tasks.support_x, tasks.support_y, tasks.query_x, query_y=tasks.query_y)
    before, after = (path[end].probabilities().argmax(-1).cpu() for end in (0, -1))
    gain = [((read == tasks.query_y).float().mean(-1)) for read in (before, after)]
    order = (gain[1] - gain[0]).argsort().tolist()
    chosen = {"the least": order[0], "the median": order[len(order) // 2], "the largest": order[-1]}
    first = torch.arange(data.way) * learner.spec.queries  # of each letter
    with plt.rc_context({**STYLE, "axes.grid": False}):
        size = (max(6.0, 0.45 * data.way + 0.8), 4.9)
        figure, axes = plt.subplots(len(chosen), 1, figsize=size, layout="constrained")
        for axis, (words, domain) in zip(axes, chosen.items(), strict=True):
            draw_letters(axis, tasks.query_x[domain, first, 0])
            steps = len(path) - 1
            for line, (k, read) in enumerate(((0, before), (steps, after))):
                draw_readings(axis, f"K = {k}", read[domain, first], data, line)
            rates = " to ".join(f"{100 * float(part[domain]):.0f} %" for part in gain)
            axis.set_title(f"{words} gain: from {rates} of its {tasks.query_y.shape[1]} letters", loc="left")
        headline(figure, "What are letters of a domain never seen taken for, before and after the steps on them?", about)
    return figure


def draw_letters(axis: Axes, pictures: Tensor) -> None:
    """``pictures`` ``[letters, height, width]`` side by side."""
    axis.imshow(torch.cat(list(pictures), dim=-1).numpy(), cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)


def draw_readings(axis: Axes, words: str, read: Tensor, data: LetterDomains, line: int) -> None:
    """What the letters are taken for, ``read`` ``[letters]``, in a ``line`` below them that starts with some ``words``."""
    size = data.image_size
    height = size * (1.35 + 0.6 * line)
    axis.text(-0.3 * size, height, words, ha="right", va="center", fontsize=8.5)
    for true, taken in enumerate(read.tolist()):
        right = true == taken
        look: dict[str, Any] = {"color": BLUE if right else VERMILLION, "fontweight": "normal" if right else "bold"}
        axis.text((true + 0.5) * size, height, data.class_names[taken], ha="center", va="center", fontsize=9, **look)
