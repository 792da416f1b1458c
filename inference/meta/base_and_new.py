"""The LwoF protocol: few-shot learning without forgetting, in Novel, Base and Both columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.base_and_new import BaseAndNewSampler
from data.episodes import EpisodeSampler
from data.errors import UserError
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from guides.tasks.base_and_new import BaseAndNewGuide
from guides.tasks.families import Family
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.evaluate import predictions
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.tables import Column, format_table, number
from inference.meta.learner import TEST_SEED
from inference.meta.mapping import feature_space, map_items
from inference.meta.methods import sib
from inference.meta.named import find_predictor
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings, settings
from inference.meta.steps import keep_none_where_it_is_better, keep_steps_that_pay
from inference.meta.training import MetaTraining
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, load_features, load_state, save_tensors
from inference.runs.training import train
from models.tasks.base_and_new import BaseAndNewModel
from models.tasks.priors import MixturePrior

VALIDATION_TASKS = 100
NUM_SAMPLES = 16
PARTS = ("novel", "base", "both")


class Columns(NamedTuple):
    """Accuracy (fraction) and its 95 % half-width among new classes, among base classes, and among all, each on its own
    queries."""

    novel: tuple[float, float]
    base: tuple[float, float]
    both: tuple[float, float]


@dataclass(frozen=True)
class LwofRecord:
    """One row of ``metrics.json``: a guide under the LwoF protocol.

    Attributes:
        split, way, shot, queries, balanced, episodes: the tasks.
        protocol: ``lwof``.
        steps: K.
        beta, predictor, posterior, variant: which guide; ``saw_labels``: whether it is the exact-gradient reference.
        novel_accuracy, base_accuracy, both_accuracy, and ``…_ci95``: see :class:`Columns`.
    """

    split: str
    protocol: str
    steps: int
    way: int
    shot: int
    queries: int
    balanced: bool
    episodes: int
    beta: float | None
    predictor: str
    posterior: str | None
    variant: str
    saw_labels: bool
    novel_accuracy: float
    novel_ci95: float
    base_accuracy: float
    base_ci95: float
    both_accuracy: float
    both_ci95: float


def check_lwof(options: SibOptions, base: LabelledItems, features: Features | None = None) -> None:
    """Refuse, before any training, what the protocol cannot do.

    Args:
        base: items of the base classes.
        features: of a feature file, where the run starts from one.

    Raises:
        UserError: no images are held out of the base classes, or they are of other classes; or no base class is left beside
            those that play new ones.
    """
    if base.num_classes <= options.way:
        raise UserError(
            f"the lwof protocol lets `way={options.way}` base classes play the new ones, and there are {base.num_classes}: "
            "lower `way`"
        )
    if features is None:
        return
    if "held_out" not in features:
        raise UserError(f"the lwof protocol tests on held-out images of base classes: {options.features} has no split held_out")
    held_out = features["held_out"]
    if held_out.class_names != base.class_names:
        raise UserError(f"the split held_out of {options.features} must have the classes of its split train, in their order")
    if int(held_out.counts.min()) < 2:
        raise UserError(f"the split held_out of {options.features} needs two images of every class, to validate and to test on")


def halves(held_out: LabelledItems) -> tuple[LabelledItems, LabelledItems]:
    """Held-out images of the base classes, half to choose a checkpoint by and half to test on.

    Raises:
        UserError: a class has only one.
    """
    return held_out.hold_out(int(held_out.counts.min()) // 2)


def build_lwof(options: SibOptions, variant: Variant, means: Tensor) -> RateDistortionModule:
    """Model and guide with a mixture prior, one component per base class ``[base, D]``."""
    chosen = settings(GuideSettings, options)
    with seeded(chosen.seed):
        prior, predictor = MixturePrior.from_class_means(means), find_predictor(variant.predictor)()
        guide = BaseAndNewGuide(
            prior,
            predictor,
            sib.build_start(chosen, means),
            sib.build_gradient(chosen),
            sib.build_rule(chosen, variant, means.shape[-1]),
            steps=variant.steps,
            beta=variant.beta or 0.0,
            inner_samples=chosen.inner_samples,
            family=variant.posterior or Family.DELTA,
        )
    return RateDistortionELBO(beta=variant.beta or 0.0)(BaseAndNewModel(prior, predictor), guide)


@torch.no_grad()
def lwof_columns(objective: RateDistortionModule, sampler: BaseAndNewSampler, *, tasks: int, seed: int) -> Columns:
    """The three accuracies of a guide on ``tasks`` tasks."""
    correct: dict[str, list[Tensor]] = {name: [] for name in PARTS}
    model, guide = objective.model, objective.guide
    for episode, predicted in predictions(model, guide, sampler, tasks=tasks, seed=seed, num_samples=NUM_SAMPLES):
        logits = predicted.labels.logits
        labels, known, half = episode.query_y, episode.base_classes.shape[1], episode.query_x.shape[1] // 2

        def right(part: Tensor, truth: Tensor) -> Tensor:
            return (part.softmax(-1).mean(0).argmax(-1) == truth).double().mean(-1).cpu()

        correct["novel"].append(right(logits[:, :, :half, known:], labels[:, :half] - known))
        correct["base"].append(right(logits[:, :, half:, :known], labels[:, half:]))
        correct["both"].append(right(logits, labels))
    means = {name: torch.cat(parts) for name, parts in correct.items()}
    return Columns(**{name: (float(values.mean()), confidence_interval(values)) for name, values in means.items()})


class Fitted(NamedTuple):
    """A trained guide, and the tasks that test it."""

    objective: RateDistortionModule
    testing: BaseAndNewSampler


def fit_lwof(options: SibOptions, run: RunFolder) -> dict[Variant, Fitted]:
    """Train every variant of SIB on tasks of base and new classes.

    The new classes of training tasks are played by base classes. Base queries are images held out of pre-training: half of
    them choose the checkpoint, the other half test.
    """
    features = load_features(run.features)
    check_lwof(options, features["train"], features)
    validation, test = halves(features["held_out"])
    spec, fitted = options.spec(imbalance=None), {}
    for variant in sib.variants(settings(VariantSettings, options)):
        frozen = replace(settings(GuideSettings, options), train_features="none")
        space, means = feature_space(frozen, variant.predictor, features["train"])
        mapped = {split: map_items(space, part) for split, part in features.items()}
        samplers = {
            "train": BaseAndNewSampler(EpisodeSampler(mapped["train"], spec), mapped["train"], playing=True),
            "val": BaseAndNewSampler(EpisodeSampler(mapped["val"], spec), map_items(space, validation), playing=False),
        }
        testing = BaseAndNewSampler(EpisodeSampler(mapped["test"], spec), map_items(space, test), playing=False)
        objective = build_lwof(options, variant, means)
        train_lwof(objective, samplers, options, run, f"lwof-{variant.name}")
        fitted[variant] = Fitted(objective, testing)
        states = {v: nn.ModuleDict({"objective": fit.objective}) for v, fit in fitted.items()}
        kinds = dict.fromkeys(fitted, (samplers["val"],))
        for changed in keep_none_where_it_is_better(states, variant, kinds.__getitem__, lwof_schedule(options)):
            save_tensors(run.checkpoints / f"lwof-{changed.name}.safetensors", fitted[changed].objective.state_dict(), {})
    return fitted


def lwof_schedule(options: SibOptions) -> MetaSchedule:
    """How the guides of the protocol are trained."""
    return replace(settings(MetaSchedule, options), validation_tasks=min(VALIDATION_TASKS, options.validation_tasks))


def lwof_records(options: SibOptions, fitted: Mapping[Variant, Fitted]) -> list[LwofRecord]:
    """Test every guide."""
    seed = mix_seed(TEST_SEED)
    return [
        make_record(options, variant, objective, lwof_columns(objective, testing, tasks=options.test_tasks, seed=seed))
        for variant, (objective, testing) in fitted.items()
    ]


def train_lwof(
    objective: RateDistortionModule, samplers: dict[str, BaseAndNewSampler], options: SibOptions, run: RunFolder, stage: str
) -> None:
    """Train one guide, whose checkpoints are named by ``stage``, or read it back."""
    finished = run.checkpoints / f"{stage}.safetensors"
    if not finished.exists():
        schedule = lwof_schedule(options)
        with run.timed(stage), seeded(options.seed):
            module = MetaTraining(objective, samplers["train"], samplers["val"], schedule)
            loop = options.loop.unmixed
            train(module, loop, run, stage, epochs=schedule.validations, monitor="val/loss", patience=schedule.patience)
        keep_steps_that_pay(objective, (samplers["val"],), schedule, stage)
        save_tensors(finished, objective.state_dict(), {})
    load_state(objective, finished)


def make_record(options: SibOptions, variant: Variant, objective: RateDistortionModule, columns: Columns) -> LwofRecord:
    """The record of one guide."""
    accuracies = {f"{name}_accuracy": pair[0] for name, pair in columns._asdict().items()}
    intervals = {f"{name}_ci95": pair[1] for name, pair in columns._asdict().items()}
    return LwofRecord(
        split="test",
        protocol="lwof",
        steps=variant.steps,
        way=options.way,
        shot=options.shot,
        queries=options.queries,
        balanced=True,
        episodes=options.test_tasks,
        beta=variant.beta,
        predictor=variant.predictor,
        posterior=variant.posterior,
        variant=variant.name,
        saw_labels=objective.guide.saw_labels,
        **accuracies,
        **intervals,
    )


def percent(record: LwofRecord, name: str) -> str:
    """A column's accuracy with its interval, in %."""
    return f"{100 * getattr(record, f'{name}_accuracy'):.2f} ± {100 * getattr(record, f'{name}_ci95'):.2f}"


COLUMNS = (
    Column("predictor", lambda r: r.predictor, left=True),
    Column("β", lambda r: number(r.beta, "g")),
    Column("K", lambda r: f"{r.steps}{' (saw labels)' if r.saw_labels else ''}"),
    *(Column(f"{name.capitalize()} %", lambda r, name=name: percent(r, name)) for name in PARTS),  # type: ignore[misc]
)


def format_lwof(records: Iterable[LwofRecord]) -> str:
    """The three columns as text."""
    return format_table(sorted(records, key=lambda record: (record.predictor, record.beta or 0, record.steps)), COLUMNS)
