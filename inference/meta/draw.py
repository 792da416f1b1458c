"""Which pictures a SIB run leaves, and from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from data.episodes import Episode, EpisodeSampler
from data.items import ImageSplits
from inference.evaluation.figures import reliability_diagram, save_figure
from inference.evaluation.posterior import TaskPosterior, infer
from inference.meta import plots
from inference.meta.options import SibOptions, Variant
from inference.meta.report import Record, final_records
from inference.meta.sib import SIB
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.runs.tensors import load_features


def draw_run(
    options: SibOptions,
    fitted: Mapping[Variant, SIB],
    selected: Variant,
    data: ImageSplits | None,
    records: Sequence[Record],
    run: RunFolder,
) -> list[Path]:
    """All pictures of the run, for the selected variant; returns their paths."""
    sib = fitted[selected]
    test = [r for r in records if r["split"] == "test"]
    figures = {
        "training_curves": plots.training_curves(read_history(run, [v.name for v in fitted])),
        "accuracy_by_step": plots.accuracy_by_step([r for r in test if r["selected"]]),
        "reliability": reliability_diagram(predictions(fitted, selected, run)),
    }
    images, before, after = example_task(sib, data, run)
    if data is not None and images.query_x.dtype == torch.uint8:
        figures["task_sheet"] = plots.task_sheet(images, after, names=())
    assert images.query_y is not None
    figures["weight_posterior"] = plots.weight_posterior(before, after, images.query_y)
    swept = [r for r in final_records(test) if r["balanced"] and r["steps"] == selected.steps and r["rate"] is not None]
    if len({r["beta"] for r in swept}) > 1:
        figures["rate_distortion"] = plots.rate_distortion_curve(swept)
    return [save_figure(figure, run.plots / f"{name}.png") for name, figure in figures.items()]


def example_task(sib: SIB, data: ImageSplits | None, run: RunFolder) -> tuple[Episode, TaskPosterior, TaskPosterior]:
    """A balanced test task (images where there are any) and its posteriors before and after the steps.

    Of 21 tasks it is the one with the median gain of accuracy, so the pictures show what is usual.
    """
    part = data.test if data is not None and sib.network is not None else load_features(run.features)["test"]
    spec = sib.options.spec(imbalance=None)
    tasks = EpisodeSampler(part, spec, split="test split").sample(21, seed=sib.options.seed)
    assert tasks.query_y is not None
    steps = sib.trajectory(tasks.support_x, tasks.support_y, tasks.query_x, query_y=tasks.query_y)
    right = [(p.probabilities().argmax(-1) == tasks.query_y.to(p.query_x.device)).sum(-1) for p in (steps[0], steps[-1])]
    median = int((right[1] - right[0]).argsort()[len(right[0]) // 2])
    task = Episode(*(t[median : median + 1] for t in (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)))
    steps = sib.trajectory(task.support_x, task.support_y, task.query_x, query_y=task.query_y)
    return task, steps[0], steps[-1]


def predictions(
    fitted: Mapping[Variant, SIB], selected: Variant, run: RunFolder
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pooled predictive probabilities and labels of 200 test tasks, for the selected K and its K = 0 reference."""
    part = load_features(run.features)["test"]
    pooled = {}
    for variant, sib in fitted.items():
        if (variant.predictor, variant.beta) == (selected.predictor, selected.beta):
            sampler = EpisodeSampler(part, sib.options.spec(imbalance=None), split="test split")
            episode = sampler.sample(200, seed=sib.options.seed)
            assert episode.query_y is not None
            mapped = episode._replace(support_x=sib.space(episode.support_x), query_x=sib.space(episode.query_x))
            probabilities = infer(sib.model, sib.guide, mapped).probabilities()
            pooled[f"K = {variant.steps}"] = probabilities.flatten(0, 1), episode.query_y.flatten()
    return pooled
