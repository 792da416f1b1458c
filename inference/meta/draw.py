"""Which pictures a run leaves, and from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from matplotlib.figure import Figure

from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.items import ImageSplits
from inference.evaluation.figures import reliability_diagram
from inference.evaluation.posterior import TaskPosterior, infer
from inference.meta import plots
from inference.meta.learner import FittedLearner
from inference.meta.report import TaskRecord, final_records, usual_records
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.runs.tensors import load_features

SHOWN_TASKS = 21


def figures(
    fitted: Mapping[Variant, FittedLearner],
    selected: Variant,
    data: ImageSplits | None,
    records: Sequence[TaskRecord],
    run: RunFolder,
) -> dict[str, Callable[[], Figure]]:
    """All pictures of the run by name, each drawn when it is called; those of one learner are of the selected one."""
    learner = fitted[selected]
    test = usual_records(records, learner.spec)
    spec = replace(learner.spec, imbalance=None, within_alphabet=any(record.within_alphabet for record in test))
    tasks = f"{learner.dataset}, {spec.shape}"
    own = f"{tasks}, {selected.title}"
    watched = f"{learner.dataset}, mean over kinds of validation tasks"
    drawn: dict[str, Callable[[], Figure]] = {
        "training_curves": lambda: plots.training_curves(histories(fitted, run), about=watched),
        "accuracy_by_step": lambda: plots.accuracy_by_step(test, about=own),
        "reliability": lambda: reliability(fitted, selected, test, spec, run, about=f"{tasks}, balanced test tasks"),
    }
    if data is not None and learner.network is not None:
        drawn["task_sheet"] = lambda: task_sheet(learner, data, spec, run, about=own)
    if selected.posterior is not None:
        drawn["weight_posterior"] = lambda: weight_posterior(learner, data, spec, run, about=own)
    swept = [r for r in final_records(test) if r.balanced and r.trained_steps == selected.steps and r.rate is not None]
    bounded = [r for r in test if r.balanced and r.objective is not None]
    if bounded and selected.steps:
        drawn["objective_by_step"] = lambda: plots.objective_by_step(bounded, about=f"{tasks}, balanced test tasks")
    if len({record.beta for record in swept}) > 1:
        about = f"{tasks}, K = {selected.steps}, balanced test tasks"
        drawn["rate_distortion"] = lambda: plots.rate_distortion_curve(swept, about=about)
    return drawn


def histories(fitted: Mapping[Variant, FittedLearner], run: RunFolder) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Logged curves of the ``run`` by the variants' titles."""
    logged = read_history(run, [variant.name for variant in fitted])
    return {variant.title: logged[variant.name] for variant in fitted}


def reliability(
    fitted: Mapping[Variant, FittedLearner],
    selected: Variant,
    test: Sequence[TaskRecord],
    spec: TaskSpec,
    run: RunFolder,
    *,
    about: str,
) -> Figure:
    """Accuracy against confidence on balanced tasks of a ``spec``, with the calibration error of the ``test`` records."""
    errors = {r.variant: r.ece for r in final_records(test) if r.balanced}
    found = predictions(fitted, selected, spec, run)
    ece = {variant.title: errors[variant.name] for variant in found if variant.name in errors}
    return reliability_diagram({variant.title: pair for variant, pair in found.items()}, ece=ece, about=about)


def task_sheet(learner: FittedLearner, data: ImageSplits | None, spec: TaskSpec, run: RunFolder, *, about: str) -> Figure:
    """The usual task's images with predictions."""
    images, names, _, after = usual_task(learner, data, spec, run)
    return plots.task_sheet(images, after, names=names, about=about)


def weight_posterior(learner: FittedLearner, data: ImageSplits | None, spec: TaskSpec, run: RunFolder, *, about: str) -> Figure:
    """The usual task's posterior before and after the steps."""
    images, names, before, after = usual_task(learner, data, spec, run)
    assert images.query_y is not None
    return plots.weight_posterior(before, after, images.query_y, names=names, about=about)


def usual_task(
    learner: FittedLearner, data: ImageSplits | None, spec: TaskSpec, run: RunFolder
) -> tuple[Episode, list[str], TaskPosterior, TaskPosterior]:
    """A test task of a ``spec`` (images where there are any), its classes' names, its posteriors before and after the steps.

    Of several tasks it is the one with the median gain of accuracy, so the pictures show what is usual.
    """
    part = data.test if data is not None and learner.network is not None else load_features(run.features)["test"]
    seed = learner.settings.seed
    sampler = EpisodeSampler(part, spec, split="test split")
    tasks = sampler.sample(SHOWN_TASKS, seed=seed)
    first, *_, last = doubled(learner.trajectory(tasks.support_x, tasks.support_y, tasks.query_x, query_y=tasks.query_y))
    assert tasks.query_y is not None
    right = [(p.probabilities().argmax(-1).cpu() == tasks.query_y).sum(-1) for p in (first, last)]
    median = int((right[1] - right[0]).argsort()[len(right[0]) // 2])
    task = tasks.tasks(slice(median, median + 1))
    classes = sampler.sample_indices(SHOWN_TASKS, seed=seed)[-1][median]
    before, *_, after = doubled(learner.trajectory(task.support_x, task.support_y, task.query_x, query_y=task.query_y))
    return task, [part.class_names[c] for c in classes.tolist()], before, after


def doubled(trajectory: list[TaskPosterior]) -> list[TaskPosterior]:
    """At least two posteriors: a method without steps stands before and after."""
    return trajectory if len(trajectory) > 1 else 2 * trajectory


def predictions(
    fitted: Mapping[Variant, FittedLearner], selected: Variant, spec: TaskSpec, run: RunFolder
) -> dict[Variant, tuple[torch.Tensor, torch.Tensor]]:
    """Pooled predictive probabilities and labels of 200 test tasks of a ``spec``, for the selected variant and those like it
    but for K, and for other methods."""
    part = load_features(run.features)["test"]
    pooled = {}
    for variant, learner in fitted.items():
        comparable = variant.beta == selected.beta or None in (variant.beta, selected.beta)
        if comparable and variant.predictor == selected.predictor:
            sampler = EpisodeSampler(part, spec, split="test split")
            episode = sampler.sample(200, seed=learner.settings.seed)
            assert episode.query_y is not None
            mapped = episode._replace(support_x=learner.space(episode.support_x), query_x=learner.space(episode.query_x))
            probabilities = infer(learner.model, learner.guide, mapped).probabilities()
            pooled[variant] = probabilities.flatten(0, 1), episode.query_y.flatten()
    return pooled
