"""Tasks of which some labels may be asked for: what methods make of those that are chosen, and of as many at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from data.episodes import EpisodeSampler, TaskSpec
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed, seeded
from data.semi_supervised import UNLABELLED, SemiSampler, Unlabelled, present
from inference.active import Acquisition, acquisitions_of, ask, first_known
from inference.evaluation.evaluate import batches, readings, tasks_that_fit
from inference.evaluation.metrics import TaskSums, confidence_interval
from inference.evaluation.predictive import Predictive, place_of, predictive
from inference.meta.active_pictures import Curve, worth_of_labels
from inference.meta.comparison import MetaRecord
from inference.meta.comparison_plots import named
from inference.meta.family_options import MetaOptions
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.methods import METHODS
from inference.meta.report import make_record
from inference.meta.semi import of_each
from inference.meta.variants import Variant
from inference.runs.files import finite
from inference.runs.folder import RunFolder
from inference.runs.study import Figures

FIRST_LABELS, CHOICES = 7, 8  # streams of random numbers
NUM_SAMPLES = 32


class Asked:
    """What is counted of one acquisition, batch by batch."""

    def __init__(self) -> None:
        self.sums, self.turns = TaskSums(), list[list[Tensor]]()

    def add(self, turns: Sequence[Predictive], query_y: Tensor) -> None:
        """Count a batch of tasks, predicted before the first label that is asked for and after each."""
        self.turns.append([right(predicted, query_y) for predicted in turns])
        last = turns[-1]
        rate, distortion = None if last.rate is None else last.rate.cpu(), last.distortion(query_y).cpu()
        self.sums.add(last.probabilities().cpu(), query_y.cpu(), rate=rate, distortion=distortion)

    @property
    def accuracies(self) -> Tensor:
        """Of each task after each turn, ``[turns + 1, tasks]``."""
        return torch.stack([torch.cat(parts) for parts in zip(*self.turns, strict=True)])


def right(predicted: Predictive, query_y: Tensor) -> Tensor:
    """The share of queries that are predicted right, ``[tasks]``."""
    return (predicted.probabilities().argmax(-1) == query_y).double().mean(-1).cpu()


def compare_active(
    fitted: Mapping[Variant, FittedLearner], options: MetaOptions, images: ImageSplits | None, run: RunFolder
) -> list[MetaRecord]:
    """Records of every method on the tasks of the active protocol, where the options ask for them: with labels at random, and
    with those that each acquisition chooses."""
    return of_each(records_of, fitted, options, images, run) if options.active else []


def records_of(
    learner: FittedLearner, part: LabelledItems, options: MetaOptions, own: Mapping[str, object]
) -> list[MetaRecord]:
    """The same of one learner, on tasks of the mapped items of a ``part``.

    Args:
        own: what does not depend on the tasks, of :func:`~inference.meta.comparison.own_measures`.
    """
    found: list[MetaRecord] = []
    for spec in options.hidden_specs():
        labels = spec.shot - options.hidden(spec.shot)
        sampler = EpisodeSampler(part, spec, split="test split")
        if METHODS[learner.variant.method].asks:
            counted = asked_by_itself(learner, SemiSampler(sampler, options.unlabelled, askable=True), options.test_tasks)
        else:
            counted = asked_for(learner, sampler, options.test_tasks, labels=labels, asked=options.asked)
        at_random = counted[Acquisition.RANDOM].accuracies
        for acquisition, one in counted.items():
            usual = make_record(learner.variant, spec, "test", learner.variant.steps, one.sums.scores())
            curve, gain = one.accuracies, one.accuracies[-1] - at_random[-1]
            chosen = acquisition is not Acquisition.RANDOM
            found.append(
                MetaRecord(
                    **finite({**asdict(usual), **own}),
                    labels=labels,
                    asked=len(curve) - 1,
                    acquisition=acquisition.value,
                    after=curve.mean(-1).tolist(),
                    after_ci95=[confidence_interval(turn) for turn in curve],
                    gain=float(gain.mean()) if chosen else None,
                    gain_ci95=confidence_interval(gain) if chosen else None,
                )
            )
    return found


def asked_for(
    learner: FittedLearner, sampler: EpisodeSampler, tasks: int, *, labels: int, asked: int
) -> dict[Acquisition, Asked]:
    """What each acquisition is worth to a method, on the same ``tasks`` with the same first labels and draws.

    Args:
        sampler: of tasks whose support is the pool, of which the method sees those items alone whose label is known.
        labels: of each class that are known at first.
        asked: how many are asked for, one by one.
    """
    *_, guide = readings(learner.guide).values()
    device, dtype = place_of(guide, learner.model)
    found: dict[Acquisition, Asked] = {}
    with pyro.validation_enabled(False):  # a task on which steps run away has no probabilities, and is counted
        for number, whole in enumerate(pools(sampler, tasks)):
            pool = whole.to(device, dtype=dtype)
            known = first_known(pool, labels, seed=mix_seed(TEST_SEED, number, FIRST_LABELS))
            found = found or {one: Asked() for one in acquisitions_of(predictive(learner.model, guide, pool))}
            for acquisition, one in found.items():
                how: dict[str, Any] = {"labels": asked, "acquisition": acquisition, "num_samples": NUM_SAMPLES, "seed": number}
                turns = list(ask(learner.model, guide, pool, known, **how))
                one.add([turn.predicted for turn in turns], pool.query_y)
    return found


def pools(sampler: EpisodeSampler | SemiSampler, tasks: int) -> Iterator[Any]:
    """Test ``tasks`` in batches, smaller ones where all draws of fifty would take too much memory."""
    for episode in batches(sampler, tasks, mix_seed(TEST_SEED)):
        count = len(episode.query_x)
        at_once = min(count, tasks_that_fit(episode, NUM_SAMPLES))
        for first in range(0, count, at_once):
            yield episode.tasks(slice(first, first + at_once))


def asked_by_itself(learner: FittedLearner, sampler: SemiSampler, tasks: int) -> dict[Acquisition, Asked]:
    """What its own choice is worth to a program that asks for a label of each query, beside any item's label, which it reads
    as it would the one that it asks for; before that, where no label may be asked for, they are the same.

    Args:
        sampler: of tasks with labels that may be asked for.
    """
    *_, guide = readings(learner.guide).values()
    scorer: Any = learner.model.scorer
    device, dtype = place_of(guide, learner.model)
    found = {Acquisition.RANDOM: Asked(), Acquisition.ATTENTION: Asked()}
    for number, drawn in enumerate(pools(sampler, tasks)):
        pool = drawn.to(device, dtype=dtype)
        predicted = partial(predictive, learner.model, guide, num_samples=NUM_SAMPLES, seed=number, batch=len(pool.query_x))
        before = predicted(present(pool, Unlabelled.SUPPORT, pool.support_y > UNLABELLED))
        with scorer.choosing_at_random(), seeded(TEST_SEED, number, CHOICES, device=device):
            found[Acquisition.RANDOM].add([before, predicted(pool)], pool.query_y)
        found[Acquisition.ATTENTION].add([before, predicted(pool)], pool.query_y)
    return found


def active_figures(records: Sequence[MetaRecord], dataset: str, tasks: int) -> Figures:
    """The picture of what labels are worth, one for each shape of ``tasks`` so many, from all ``records`` of a run.

    Args:
        dataset: its name, for titles.
        tasks: how many are the means over.
    """
    shapes: dict[tuple[str, str], dict[str, dict[Acquisition, Curve]]] = {}
    for record in records:
        if record.acquisition is not None and record.after is not None and record.after_ci95 is not None:
            known = f"{record.labels} of {record.shot} labels known at first"
            panels = shapes.setdefault((TaskSpec(record.way, record.shot).shape, known), {})
            curve = Curve(record.after, record.after_ci95)
            panels.setdefault(named(record), {})[Acquisition(record.acquisition)] = curve
    drawn = {}
    for number, ((shape, known), panels) in enumerate(shapes.items()):
        about = f"{dataset}, {shape}, {known}, {tasks} test tasks"
        name = "labels_asked_for" + (f"_{number + 1}" if number else "")
        drawn[name] = partial(worth_of_labels, panels, "test accuracy (%)", factor=100.0, about=about)
    return drawn
