"""Many methods on the same tasks: their records, table and pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias

import pyro
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import kl_divergence

from data.ambiguous import fewer_queries, sampler_of
from data.episodes import Attributes, Episode, TaskSpec
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed
from data.semi_supervised import Unlabelled
from guides.tasks.adapted import AdaptedScorer
from guides.tasks.regularised import EncoderGuide
from inference.active import Acquisition
from inference.diagnostics.ambiguity import ambiguity, expected_coverage
from inference.diagnostics.dependence import is_transductive, query_information, support_information
from inference.evaluation.evaluate import evaluate_readings, predictions, readings
from inference.evaluation.predictive import is_of_tasks, is_point, place_of, trace_guide, trace_model
from inference.evaluation.tables import Column, format_table, number
from inference.meta import comparison_plots, plots
from inference.meta.comparison_plots import named
from inference.meta.family_options import MetaOptions
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import map_items
from inference.meta.report import VALIDATION_TASKS, TaskRecord, make_record, usual_records
from inference.meta.settings import NETWORK
from inference.meta.stages import features_of
from inference.meta.variants import Variant
from inference.runs.files import finite
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.runs.study import Figures

TIMED_TASKS = 100
"""Test tasks that are timed, up to fifty at once."""
DEPENDENT_TASKS = 10
"""Tasks on which what predictions depend on is measured."""
FEW = 4
"""Posterior draws that are to find the answers of an ambiguous task."""
DRAWS = 64
"""Draws that their coverage is estimated from: half of them, for they come in pairs around their mean, which particles do
not."""
RUNAWAY = 1e3
"""Times the median loss, beyond which a task has diverged."""
View: TypeAlias = Callable[[Episode], Episode] | None
"""Tasks as guides see them; as they are where there is none."""


@dataclass(frozen=True)
class MetaRecord(TaskRecord):
    """One row of ``metrics.json``: a method on one kind of tasks; what it has beside a :class:`TaskRecord`, from
    ``transductive`` on of test tasks alone.

    Attributes:
        given: the method's own options that are not as usual.
        train_features: what of the features it trained: none, linear, all.
        tasks_per_second: in training, validation included, of a run that was not interrupted; ``None`` where nothing was
            trained.
        shared: learned numbers that all tasks share, those of a network that only this method has included.
        transductive: whether another query changes a prediction.
        shared_rate: KL(q ‖ p) of what all tasks share, nats, for all training tasks together; ``None`` where there is nothing
            of the kind, or a point.
        support_information: I(ŷ; D given x), what predictions owe to the support's labels, nats per query; see
            :func:`~inference.diagnostics.dependence.support_information`.
        query_information: what seeing the other queries is worth, nats per query.
        rate_against: which prior the rate is against: ``learned`` (the same for all tasks), ``support`` (it has seen the task's
            support); ``None`` without a rate.
        adapt_ms: from a task's features, or its images where the ``predictor`` is a network, to its predictions, milliseconds a
            task, up to fifty at once.
        adapted: numbers that are a task's own.
        diverged: share of tasks whose distortion is not finite, or beyond 1000 times the median.
        labels: of a class's support that are known, at first, in tasks of semi and active protocols; ``None`` where all are.
        unlabelled: what became of the other support items in the semi protocol: left-out, support or queries.
        asked: how many labels of a task, or of each query, were asked for before the scores in the active protocol.
        acquisition: by what: random, entropy, bald or attention.
        after, after_ci95: accuracy before the first of these labels and after each, and half-widths of their intervals.
        attributes: which tasks of two out of three attributes, see :class:`~data.episodes.Attributes`; ``None`` of others.
        coverage: of ambiguous ones, how many of the three right answers :data:`FEW` posterior draws find on average, see
            :func:`~inference.diagnostics.ambiguity.expected_coverage`; a point finds one.
        joint_nll: of these, −log of the mean over draws of the likelihood of all queries of an answer, nats per query.
        gain, gain_ci95: accuracy less that of the same method on the same tasks without these items, or with as many labels
            asked for at random, and the half-width of its 95 % interval over tasks.
    """

    given: str = ""
    train_features: str = "none"
    tasks_per_second: float | None = None
    shared: int = 0
    shared_rate: float | None = None
    transductive: bool | None = None
    support_information: float | None = None
    query_information: float | None = None
    rate_against: str | None = None
    adapt_ms: float | None = None
    adapted: int | None = None
    diverged: float | None = None
    labels: int | None = None
    unlabelled: str | None = None
    asked: int | None = None
    acquisition: str | None = None
    after: Sequence[float] | None = None
    after_ci95: Sequence[float] | None = None
    attributes: str | None = None
    coverage: float | None = None
    joint_nll: float | None = None
    gain: float | None = None
    gain_ci95: float | None = None

    @property
    def kind(self) -> str:
        """The kind of tasks, in words."""
        if self.attributes is not None:
            return str(self.attributes)
        if self.labels is None:
            return "balanced" if self.balanced else "imbalanced"
        if self.acquisition is not None:
            how = "at random" if self.acquisition == Acquisition.RANDOM else f"by {self.acquisition}"
            return f"{self.labels} of {self.shot} labels, {self.asked} more {how}"
        rest = "others left out" if self.unlabelled == Unlabelled.LEFT_OUT else "others unlabelled"
        return f"{self.labels} of {self.shot} labels, {rest}"


def compare(
    fitted: Mapping[Variant, FittedLearner], options: MetaOptions, images: ImageSplits | None, run: RunFolder
) -> list[MetaRecord]:
    """Records of every method on validation tasks, and on the test tasks of every shape that the options ask for."""
    found = []
    for learner in fitted.values():
        own = own_measures(learner, options, run)
        for split in ("val", "test"):
            part = map_items(learner.space, features_of(learner, images, run, split))
            specs = [learner.spec] if split == "val" else options.test_specs()
            tasks = min(VALIDATION_TASKS, options.test_tasks) if split == "val" else options.test_tasks
            found += [record_of(learner, part, spec, split, tasks, own) for spec in specs]
    return found


def record_of(
    learner: FittedLearner, part: LabelledItems, spec: TaskSpec, split: str, tasks: int, own: Mapping[str, object]
) -> MetaRecord:
    """The record of a learner on so many ``tasks`` of a ``spec`` from the mapped items of a ``part``, the split's.

    The posterior of an ambiguous task sees a third of its queries, about as many as in training, and predicts all of them.

    Args:
        own: what does not depend on the tasks, of :func:`own_measures`.
    """
    sampler, seed = sampler_of(part, spec, split=f"{split} split"), mix_seed(TEST_SEED)
    *_, guide = readings(learner.guide).values()
    view = fewer_queries if spec.attributes is Attributes.AMBIGUOUS else None
    with pyro.validation_enabled(False):  # a task on which steps run away has no probabilities, and is counted
        (scores,) = evaluate_readings(learner.model, {0: guide}, sampler, tasks=tasks, seed=seed, view=view).values()
        usual = make_record(learner.variant, spec, split, learner.variant.steps, scores)
        about = learner, sampler, seed, view
        measured = {**timing(*about), **dependence(*about)} if split == "test" else {}
        if spec.attributes is Attributes.AMBIGUOUS:
            measured |= answers_found(learner, sampler, tasks, seed)
    return MetaRecord(**finite({**asdict(usual), **own, **measured}), attributes=spec.attributes)


@torch.no_grad()
def answers_found(learner: FittedLearner, sampler: Any, tasks: int, seed: int) -> dict[str, object]:
    """``coverage`` and ``joint_nll`` on so many ``tasks`` of a ``sampler`` of ambiguous ones, see :class:`MetaRecord`."""
    found: dict[str, list[torch.Tensor]] = {"coverage": [], "joint_nll": []}
    how: dict[str, Any] = {"tasks": tasks, "seed": seed, "num_samples": DRAWS, "view": fewer_queries}
    for episode, predicted in predictions(learner.model, learner.guide, sampler, **how):
        logits = predicted.labels.logits
        alone = logits if hasattr(learner.guide, "particles") else logits[::2]
        given = ambiguity(alone, episode.query_y).given
        found["coverage"].append(expected_coverage(given, min(FEW, len(alone))))
        found["joint_nll"].append(ambiguity(logits, episode.query_y).nll)
    return {name: float(torch.cat(parts).mean()) for name, parts in found.items()}


def share_of_runaways(losses: torch.Tensor) -> float:
    """The share of ``losses`` ``[tasks]`` that are no number, or beyond :data:`RUNAWAY` times their median."""
    return float((~(losses <= RUNAWAY * losses.nanmedian())).double().mean())


def own_measures(learner: FittedLearner, options: MetaOptions, run: RunFolder) -> dict[str, object]:
    """``given``, ``train_features``, ``tasks_per_second`` and ``shared`` of a learner, see :class:`MetaRecord`."""
    modules: list[nn.Module] = [learner.objective, learner.space, *([learner.network] if learner.own_network else [])]  # type: ignore[list-item]
    learned = {id(p): p.numel() for module in modules for p in module.parameters() if p.requires_grad}
    trained = any(p.requires_grad for p in learner.objective.parameters())
    whole = learner.variant.predictor == NETWORK
    seconds = run.seconds().get(learner.variant.name) if trained else None
    tasks = options.network_tasks if learner.trains_network or whole else options.tasks
    return {
        "given": learner.variant.given,
        "train_features": "all" if whole else options.train_features if trained else "none",
        "tasks_per_second": tasks / seconds if seconds and not options.patience else None,
        "shared": sum(learned.values()) if trained else 0,
    }


@torch.no_grad()
def timing(learner: FittedLearner, sampler: Any, seed: int, view: View = None) -> dict[str, object]:
    """``adapt_ms``, ``adapted``, ``diverged``, ``shared_rate`` and ``rate_against`` on the first tasks of a ``sampler``, see
    :class:`MetaRecord`; the guide sees them as the ``view`` has them."""
    how: dict[str, Any] = {"tasks": TIMED_TASKS, "seed": seed, "view": view}
    drawn = sampler.sample(TIMED_TASKS, seed=seed)
    for _ in predictions(learner.model, learner.guide, drawn, **how):  # what is made on first use is made now
        break
    wait()
    begun = time.perf_counter()
    both = list(predictions(learner.model, learner.guide, drawn, **how))
    wait()
    seconds = time.perf_counter() - begun
    losses = torch.cat([predicted.distortion(episode.query_y) for episode, predicted in both])
    episode, predicted = both[0]
    seen = episode if view is None else view(episode)
    return {
        "adapt_ms": 1000 * seconds / len(losses),
        "adapted": numbers_adapted(learner.guide, seen) + points_adapted(learner.model),
        "diverged": share_of_runaways(losses),
        "shared_rate": shared_rate(learner.model, learner.guide, seen.tasks(slice(1))),
        "rate_against": None if predicted.rate is None else "support" if prior_sees_support(learner) else "learned",
    }


def wait() -> None:
    """Until the devices have done what they were asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def dependence(learner: FittedLearner, sampler: Any, seed: int, view: View = None) -> dict[str, object]:
    """``transductive``, ``support_information`` and ``query_information`` on a few tasks of a ``sampler``, as the ``view`` has
    them, see :class:`MetaRecord`."""
    device, dtype = place_of(learner.guide, learner.model)
    episode = sampler.sample(DEPENDENT_TASKS, seed=seed).to(device, dtype=dtype)
    episode = episode if view is None else view(episode)
    about = learner.model, learner.guide, episode
    transductive = is_transductive(*about)
    return {
        "transductive": transductive,
        "support_information": float(support_information(*about, exclusive=True, num_samples=8).mean()),
        "query_information": float(query_information(*about, num_samples=8).mean()) if transductive else 0.0,
    }


OF_ITEMS = {"support", "queries"}
"""Plates inside a task."""


def numbers_adapted(guide: nn.Module, episode: Any) -> int:
    """How many numbers are a task's own: those of a ``guide``'s latent sites, on tasks of an ``episode``, but for what all of
    them share and what is of each item."""
    trace: Any = trace_guide(guide, episode, 1)
    sites = [trace.nodes[name] for name in trace.stochastic_nodes]
    plates = [{plate.name for plate in site["cond_indep_stack"]} for site in sites]
    own = [site["fn"] for site, inside in zip(sites, plates, strict=True) if "tasks" in inside and not inside & OF_ITEMS]
    return sum(fn.batch_shape[0] * fn.event_shape.numel() for fn in own)  # of one draw, or of as many as it has particles


def points_adapted(model: nn.Module) -> int:
    """How many numbers of a task's own are no site of the model's: points that its scorer adapts."""
    return sum(part.num_adapted for part in model.modules() if isinstance(part, AdaptedScorer))


@torch.no_grad()
def shared_rate(model: nn.Module, guide: nn.Module, episode: Any) -> float | None:
    """Σ KL(q ‖ p) of latent sites that all tasks share, nats; ``None`` where there are none, or one is a point.

    Args:
        model, guide: of q itself, where tests see its mean alone.
        episode: any tasks.
    """
    guide_trace = trace_guide(guide.drawn() if isinstance(guide, EncoderGuide) else guide, episode, 1)
    sites: list[Any] = [guide_trace.nodes[name] for name in guide_trace.stochastic_nodes]
    shared = [site for site in sites if not is_of_tasks(site)]
    if not shared or any(is_point(site["fn"]) for site in shared):
        return None
    priors: Any = trace_model(model, guide_trace, episode, 1).nodes
    return sum(float(kl_divergence(site["fn"], priors[site["name"]]["fn"]).sum()) for site in shared)


def prior_sees_support(learner: FittedLearner) -> bool:
    """Whether the model's prior of a task's weights is made from its support."""
    return not hasattr(learner.model, "prior")


ACCURACY = Column("accuracy %", lambda r: f"{100 * r.accuracy:.2f} ± {100 * r.ci95:.2f}")
FOUND = (
    Column(f"coverage, {FEW} draws", lambda r: number(r.coverage, ".2f")),
    Column("joint NLL", lambda r: number(r.joint_nll)),
)
GAIN = Column("gain %", lambda r: "-" if r.gain is None else f"{100 * r.gain:+.2f} ± {100 * r.gain_ci95:.2f}")
COLUMNS = (
    Column("", lambda r: "*" if r.selected else " ", left=True),
    Column("tasks", lambda r: TaskSpec(r.way, r.shot, within_alphabet=r.within_alphabet).shape, left=True),
    Column("queries", lambda r: r.kind, left=True),
    Column("method", named, left=True),
    Column("", lambda r: "T" if r.transductive else " ", left=True),
    ACCURACY,
    Column("NLL", lambda r: number(r.nll)),
    Column("ECE %", lambda r: number(r.ece, ".1f", factor=100)),
    Column("Brier", lambda r: number(r.brier)),
    Column("rate", lambda r: number(r.rate, ".1f") if r.shared_rate is None else f"{r.shared_rate:.0f} once"),
    Column("distortion", lambda r: number(r.distortion, ".1f")),
    Column("I(ŷ; D)", lambda r: number(r.support_information, ".2f")),
    Column("I(ŷ; X)", lambda r: number(r.query_information, ".2f") if r.transductive else "-"),
    Column("ms/task", lambda r: number(r.adapt_ms, ".2f")),
    Column("tasks/s", lambda r: number(r.tasks_per_second, ".0f")),
    Column("adapted", lambda r: str(r.adapted) if r.adapted else "-"),
    Column("shared", lambda r: str(r.shared) if r.shared else "-"),
)


def format_comparison(records: Iterable[MetaRecord]) -> str:
    """The closing table: best NLL first, for each shape of tasks."""
    ordered = sorted(
        records, key=lambda r: (r.way, r.shot, r.labels or 0, not r.balanced, r.kind, math.inf if r.nll is None else r.nll)
    )
    shapes, columns = {(r.way, r.shot) for r in ordered}, list(COLUMNS)
    if any(r.gain is not None for r in ordered):
        columns.insert(columns.index(ACCURACY) + 1, GAIN)
    if any(r.coverage is not None for r in ordered):
        columns[(place := columns.index(ACCURACY) + 2) : place] = FOUND
    return format_table(ordered, columns if len(shapes) > 1 else (columns[0], *columns[2:]))


def figures(
    fitted: Mapping[Variant, FittedLearner],
    images: ImageSplits | None,
    records: Sequence[MetaRecord],
    options: MetaOptions,
    run: RunFolder,
) -> Figures:
    """All pictures of the run by name."""
    learner = next(iter(fitted.values()))
    standard = [record for record in records if record.labels is None and record.attributes != Attributes.AMBIGUOUS]
    test = [record for record in usual_records(standard, learner.spec) if record.balanced]
    about = (
        f"{learner.dataset}, {learner.spec.shape}, {Attributes.UNAMBIGUOUS if options.attributed else 'balanced'} test tasks"
    )
    watched = f"{learner.dataset}, mean over kinds of validation tasks"

    @cache
    def pooled() -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        return {named(v): probabilities_of(one, images, run, options) for v, one in fitted.items()}

    drawn: dict[str, Callable[[], Figure]] = {
        "training_curves": lambda: plots.training_curves(curves(fitted, run), about=watched)
    }
    known = {named(record): record.ece for record in test if record.ece is not None}
    if not test or len(known) < len(fitted):  # tasks of other shapes alone were tested, or a method ran away
        return drawn
    return drawn | {
        "accuracy_against_time": partial(comparison_plots.accuracy_against_time, test, about=about),
        "reliability": lambda: comparison_plots.reliabilities(pooled(), ece=known, about=about),
    }


def curves(fitted: Mapping[Variant, FittedLearner], run: RunFolder) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Logged curves of what was trained in the ``run``, by the names that the table has."""
    logged = read_history(run, [variant.name for variant in fitted])
    return {named(variant): logged[variant.name] for variant in fitted if logged[variant.name]}


def probabilities_of(
    learner: FittedLearner, images: ImageSplits | None, run: RunFolder, options: MetaOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictive probabilities ``[n, way]`` and labels ``[n]`` of the queries of 200 balanced test tasks."""
    part = map_items(learner.space, features_of(learner, images, run, "test"))
    spec = options.spec(imbalance=None, within_alphabet=options.tests_within_alphabet, partition=None)
    if options.attributed:
        spec = replace(spec, attributes=Attributes.UNAMBIGUOUS)
    sampler = sampler_of(part, spec, split="test split")
    both = list(predictions(learner.model, learner.guide, sampler, tasks=200, seed=mix_seed(TEST_SEED)))
    probabilities = torch.cat([predicted.probabilities().flatten(0, 1) for _, predicted in both])
    return probabilities, torch.cat([episode.query_y.flatten() for episode, _ in both])
