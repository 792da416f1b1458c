"""From fitted learners to records of ``metrics.json`` and the table a run ends with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyro

from data.episodes import Episode, TaskSpec
from data.items import ImageSplits, LabelledItems
from inference.evaluation.metrics import Scores
from inference.evaluation.tables import Column, format_table, number
from inference.meta.learner import FittedLearner
from inference.meta.stages import features_of
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features

VALIDATION_TASKS = 600


@dataclass(frozen=True)
class TaskRecord:
    """One row of ``metrics.json``: a learner under one protocol, read after ``steps`` steps.

    Attributes:
        split, way, shot, queries, balanced, episodes: the tasks.
        steps: K it was read at; ``trained_steps``: K it was trained with.
        beta: ``None`` where there is no rate to weigh.
        accuracy, ci95, nll, ece, brier, rate, distortion: as in :class:`~inference.evaluation.metrics.Scores`.
        neg_elbo: distortion + rate, nats per task: the negative evidence lower bound, whatever β; ``None`` without a rate.
        objective: distortion + β · rate, nats per task: what was trained; ``None`` without a rate.
        guess: what q = p with equal probabilities costs, queries · log way, nats per task, whatever β.
        method, predictor, posterior, variant: which learner.
        saw_labels: whether the posterior saw the query labels: a reference, not a prediction.
        reference: whether it stands beside another for comparison and is never chosen, as K = 0 beside K = 3.
        selected: whether validation tasks chose it, or it is the chosen one's reference.
        within_alphabet: whether all classes of a task are of one alphabet.
    """

    split: str
    steps: int
    way: int
    shot: int
    queries: int
    balanced: bool
    episodes: int
    beta: float | None
    accuracy: float
    ci95: float
    nll: float
    ece: float
    brier: float
    rate: float | None
    distortion: float
    neg_elbo: float | None
    objective: float | None
    guess: float
    trained_steps: int
    method: str
    predictor: str
    posterior: str | None
    variant: str
    saw_labels: bool
    reference: bool
    selected: bool = False
    within_alphabet: bool = False


def make_record(
    variant: Variant, spec: TaskSpec, split: str, steps: int, scores: Scores, *, saw_labels: bool = False
) -> TaskRecord:
    """The record of a variant read after ``steps`` steps on tasks of a ``split``, by name; ``saw_labels`` says whether these
    read the query labels."""
    return TaskRecord(
        split=split,
        steps=steps,
        way=spec.way,
        shot=spec.shot,
        queries=spec.queries,
        balanced=spec.balanced,
        beta=variant.beta,
        **asdict(scores),
        neg_elbo=None if scores.rate is None else scores.distortion + scores.rate,
        objective=None if scores.rate is None or variant.beta is None else scores.distortion + variant.beta * scores.rate,
        guess=spec.guess,
        trained_steps=variant.steps,
        method=variant.method,
        predictor=variant.predictor,
        posterior=variant.posterior,
        variant=variant.name,
        saw_labels=steps > 0 and saw_labels,
        reference=variant.reference,
        within_alphabet=spec.within_alphabet,
    )


def evaluate_learner(
    learner: FittedLearner,
    part: LabelledItems,
    spec: TaskSpec,
    *,
    split: str,
    tasks: int,
    steps: int | None = None,
    earlier: bool = True,
) -> list[TaskRecord]:
    """One record for each number of steps, 0 … K (K alone if not ``earlier``), on the same tasks of ``split``, by name;
    arguments as in :meth:`~inference.meta.learner.FittedLearner.evaluate`."""
    scores = learner.evaluate(part, spec, split=split, tasks=tasks, steps=steps, earlier=earlier)
    seeing = bool(getattr(learner.guide, "saw_labels", False))
    return [make_record(learner.variant, spec, split, k, score, saw_labels=seeing) for k, score in scores.items()]


def evaluate_runs(learner: FittedLearner, tasks: Episode, *, steps: int | None = None) -> list[TaskRecord]:
    """One record for each number of steps, 0 … K, on one-shot runs.

    Args:
        tasks: images, with one support item and one query of each class, see
            :func:`~data.sources.one_shot_runs.one_shot_runs`.
    """
    spec = TaskSpec(len(tasks.support_y[0]), shot=1, queries=1, within_alphabet=True)
    scores, seeing = learner.evaluate_tasks(tasks, steps=steps), bool(getattr(learner.guide, "saw_labels", False))
    return [make_record(learner.variant, spec, "test", k, score, saw_labels=seeing) for k, score in scores.items()]


def validate(fitted: Mapping[Variant, FittedLearner], run: RunFolder, images: ImageSplits | None = None) -> list[TaskRecord]:
    """Each learner's record on validation tasks after its own K.

    Args:
        images: where learners have networks of their own.
    """
    score = partial(evaluate_learner, split="val", tasks=VALIDATION_TASKS, earlier=False)
    with pyro.validation_enabled(False):  # a task on which steps run away has no probabilities
        return [
            record
            for learner in fitted.values()
            for record in score(learner, features_of(learner, images, run, "val"), learner.spec)
        ]


def choose(records: Iterable[TaskRecord]) -> TaskRecord:
    """The validation record with the lowest NLL; references, and what has seen labels, do not take part."""
    trained = [record for record in records if record.split == "val" and not record.reference]
    honest = [record for record in trained if not record.saw_labels]
    return min(honest or trained, key=lambda record: math.inf if record.nll is None or math.isnan(record.nll) else record.nll)


def evaluate_protocols(
    fitted: Mapping[Variant, FittedLearner], specs: Sequence[TaskSpec], tasks: int, run: RunFolder, *, steps: int | None = None
) -> list[TaskRecord]:
    """Test records of every learner on so many ``tasks`` of every shape.

    Args:
        specs: the shapes.
        steps: of learners that take any, how many are scored; as many as each was trained with when not given.
    """
    part = load_features(run.features)["test"]
    return [
        record
        for learner in fitted.values()
        for spec in specs
        for record in evaluate_learner(
            learner, part, spec, split="test", tasks=tasks, steps=steps if learner.variant.steps else None
        )
    ]


def mark_selected(records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """``selected`` on all records of what validation chose, and of its reference."""
    chosen = choose(records)

    def belongs(record: TaskRecord) -> bool:
        kin = ("method", "predictor", "posterior", "beta")
        alike = all(getattr(record, name) == getattr(chosen, name) for name in kin)
        return record.variant == chosen.variant or (record.reference and alike)

    return [replace(record, selected=belongs(record)) for record in records]


def selected_variant(fitted: Iterable[Variant], records: Iterable[TaskRecord]) -> Variant:
    """The variant that validation chose, from marked records."""
    name = next(record.variant for record in records if record.selected and not record.reference)
    return next(variant for variant in fitted if variant.name == name)


def usual_records(records: Iterable[TaskRecord], spec: TaskSpec) -> list[TaskRecord]:
    """Test records on tasks of the way and shot of ``spec``: what pictures show."""
    return [r for r in records if r.split == "test" and (r.way, r.shot) == (spec.way, spec.shot)]


def final_records(records: Iterable[TaskRecord]) -> list[TaskRecord]:
    """Test records read at the K they were trained with: the rows of the table."""
    return [r for r in records if r.split == "test" and r.steps == r.trained_steps]


COLUMNS = (
    Column("", lambda r: "*" if r.selected else " ", left=True),
    Column("queries", lambda r: "balanced" if r.balanced else "imbalanced", left=True),
    Column("predictor", lambda r: r.predictor if r.method == "sib" else f"{r.predictor} ({r.method})", left=True),
    Column("β", lambda r: number(r.beta, "g")),
    Column("K", lambda r: f"{r.steps}{' (saw labels)' if r.saw_labels else ''}"),
    Column("accuracy %", lambda r: f"{100 * r.accuracy:.2f} ± {100 * r.ci95:.2f}"),
    Column("NLL", lambda r: number(r.nll)),
    Column("ECE %", lambda r: number(r.ece, ".1f", factor=100)),
    Column("Brier", lambda r: number(r.brier)),
    Column("rate", lambda r: number(r.rate, ".1f")),
    Column("distortion", lambda r: number(r.distortion, ".1f")),
    Column("−ELBO", lambda r: number(r.neg_elbo, ".1f")),
    Column("objective", lambda r: number(r.objective, ".1f")),
)


TASKS = Column("tasks", lambda r: TaskSpec(r.way, r.shot, within_alphabet=r.within_alphabet).shape, left=True)

UNITS = (
    "NLL in nats per query, ± is a 95 % interval; in nats per task: −ELBO = distortion + rate, "
    "objective = distortion + β · rate"
)


def guessing(record: TaskRecord) -> str:
    """What the nats of a table are to be held against."""
    return f"guessing (a posterior that is the prior, equal probabilities) costs {record.guess:.1f} nats per task"


def format_records(records: Iterable[TaskRecord]) -> str:
    """The closing table as text; ``*`` marks the variant chosen on validation tasks."""
    ordered = sorted(
        records, key=lambda r: (r.way, r.shot, not r.balanced, r.method != "sib", r.predictor, r.beta or 0, r.steps)
    )
    shapes = {(r.way, r.shot) for r in ordered}
    columns = COLUMNS if len(shapes) == 1 else (COLUMNS[0], TASKS, *COLUMNS[1:])
    return format_table(ordered, columns)
