"""Tasks of which a part of the support has no labels: what methods make of these items, and without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from data.episodes import EpisodeSampler
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed
from data.semi_supervised import SemiSampler, Unlabelled, present
from inference.diagnostics.dependence import is_transductive
from inference.evaluation.evaluate import predictions, readings
from inference.evaluation.metrics import Scores, TaskSums, confidence_interval
from inference.evaluation.predictive import place_of
from inference.meta.comparison import DEPENDENT_TASKS, MetaRecord, own_measures
from inference.meta.family_options import MetaOptions
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import map_items
from inference.meta.methods import METHODS
from inference.meta.report import make_record
from inference.meta.stages import features_of
from inference.meta.variants import Variant
from inference.runs.files import finite
from inference.runs.folder import RunFolder


def compare_semi(
    fitted: Mapping[Variant, FittedLearner], options: MetaOptions, images: ImageSplits | None, run: RunFolder
) -> list[MetaRecord]:
    """Records of every method on the tasks of the semi protocol, where the options ask for them: with the unlabelled items left
    out and, of a method that makes something of them, with them."""
    return of_each(records_of, fitted, options, images, run) if options.semi else []


def of_each(
    records: Callable[[FittedLearner, LabelledItems, MetaOptions, Mapping[str, object]], list[MetaRecord]],
    fitted: Mapping[Variant, FittedLearner],
    options: MetaOptions,
    images: ImageSplits | None,
    run: RunFolder,
) -> list[MetaRecord]:
    """The ``records`` of every method, as :func:`records_of` makes them of a learner and mapped test items."""
    found = []
    for learner in fitted.values():
        part = map_items(learner.space, features_of(learner, images, run, "test"))
        found += records(learner, part, options, own_measures(learner, options, run))
    return found


def records_of(
    learner: FittedLearner, part: LabelledItems, options: MetaOptions, own: Mapping[str, object]
) -> list[MetaRecord]:
    """The same of one learner, on tasks of the mapped items of a ``part``.

    Args:
        own: what does not depend on the tasks, of :func:`~inference.meta.comparison.own_measures`.
    """
    found, views = [], dict.fromkeys((Unlabelled.LEFT_OUT, METHODS[learner.variant.method].unlabelled))
    for spec in options.hidden_specs():
        sampler = SemiSampler(EpisodeSampler(part, spec, split="test split"), options.unlabelled)
        without: Tensor | None = None
        for view in views:
            scores, accuracies = scores_of(learner, sampler, view, options.test_tasks)
            usual = make_record(learner.variant, spec, "test", learner.variant.steps, scores)
            numbers = {**asdict(usual), **own, "transductive": transductive(learner, sampler, view)}
            found.append(
                MetaRecord(
                    **finite(numbers),
                    labels=spec.shot - options.hidden(spec.shot),
                    unlabelled=view.value,
                    gain=None if without is None else float((accuracies - without).mean()),
                    gain_ci95=None if without is None else confidence_interval(accuracies - without),
                )
            )
            without = accuracies if without is None else without
    return found


def transductive(learner: FittedLearner, sampler: SemiSampler, view: Unlabelled) -> bool:
    """Whether another query changes a prediction of a few tasks, whose unlabelled items are presented as ``view`` says."""
    device, dtype = place_of(learner.guide, learner.model)
    episode = sampler.sample(DEPENDENT_TASKS, seed=mix_seed(TEST_SEED)).to(device, dtype=dtype)
    return is_transductive(learner.model, learner.guide, present(episode, view))


@torch.no_grad()
def scores_of(learner: FittedLearner, sampler: SemiSampler, view: Unlabelled, tasks: int) -> tuple[Scores, Tensor]:
    """Scores on so many ``tasks``, whose unlabelled items are presented as ``view`` says, and each task's accuracy ``[tasks]``.

    Tasks and draws are the same for every view.
    """
    *_, guide = readings(learner.guide).values()
    how: dict[str, Any] = {"tasks": tasks, "seed": mix_seed(TEST_SEED), "view": partial(present, how=view)}
    sums, accuracies = TaskSums(), []
    with pyro.validation_enabled(False):
        for episode, predicted in predictions(learner.model, guide, sampler, **how):
            probabilities, query_y = predicted.probabilities().cpu(), episode.query_y.cpu()
            rate = None if predicted.rate is None else predicted.rate.cpu()
            sums.add(probabilities, query_y, rate=rate, distortion=predicted.distortion(episode.query_y).cpu())
            accuracies.append((probabilities.argmax(-1) == query_y).double().mean(-1))
    return sums.scores(), torch.cat(accuracies)
