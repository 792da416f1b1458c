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
from inference.meta.tasks import Kinds
from inference.meta.training import MetaTraining
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, load_features, load_state, save_tensors
from inference.runs.training import train
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import FeatureSpace, class_means
from models.networks.layers import embed
from models.tasks.base_and_new import BaseAndNewModel, NewOffset
from models.tasks.predictors import Predictor
from models.tasks.priors import MixturePrior

VALIDATION_TASKS = 100
NUM_SAMPLES = 16
TIGHTNESS = 0.3
"""Initial standard deviation of the prior's components, in units of that between the base classes."""
CLASSIFIER_PASSES = 4
CLASSIFIER_BATCH = 256
CLASSIFIER_RATE = 2e-3
PARTS = ("novel", "base", "both")


class Columns(NamedTuple):
    """Accuracy (fraction) of every task, ``[tasks]``, among new classes, among base classes, and among all, each on its own
    queries."""

    novel: Tensor
    base: Tensor
    both: Tensor

    def named(self, value: str, interval: str) -> dict[str, float]:
        """Means over tasks and their 95 % half-widths, as fields of :class:`LwofRecord` that end in ``value`` and
        ``interval``."""
        fields = {f"{name}_{value}": float(accuracy.mean()) for name, accuracy in self._asdict().items()}
        return fields | {f"{name}_{interval}": confidence_interval(accuracy) for name, accuracy in self._asdict().items()}

    def less(self, other: Columns) -> Columns:
        """Differences to another guide's on the same tasks."""
        return Columns(*(ours - theirs for ours, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True)
class LwofRecord:
    """One row of ``metrics.json``: a guide under the LwoF protocol.

    Attributes:
        split, way, shot, queries, balanced, episodes: the tasks.
        protocol: ``lwof``.
        steps: K.
        beta, predictor, posterior, variant: which guide; ``saw_labels``: whether it is the exact-gradient reference.
        novel_accuracy, base_accuracy, both_accuracy, and ``…_ci95``: see :class:`Columns`.
        novel_gain, base_gain, both_gain, and ``…_ci95``: what K steps bring over the reference without steps, which was trained
            apart, on the same tasks (paired); ``None`` without one.
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
    novel_gain: float | None = None
    novel_gain_ci95: float | None = None
    base_gain: float | None = None
    base_gain_ci95: float | None = None
    both_gain: float | None = None
    both_gain_ci95: float | None = None


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


def base_classifier(predictor: Predictor, base: LabelledItems, means: Tensor, seed: int) -> Tensor:
    """Weights of a classifier of the base classes, ``[base, D]``: of maximum likelihood, in a few passes over their items.

    Args:
        predictor: trained in place with the weights.
        base: features of the base classes.
        means: of each class, ``[base, D]``, where the weights start.
        seed: of the order.
    """
    weights, likelihood = means.clone().requires_grad_(), CategoricalLikelihood()
    learned = [parameter for parameter in predictor.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam([weights, *learned], CLASSIFIER_RATE)
    generator = torch.Generator().manual_seed(mix_seed(seed))
    for _ in range(CLASSIFIER_PASSES):
        for chosen in torch.randperm(len(base), generator=generator).split(CLASSIFIER_BATCH):
            loss = -likelihood(predictor(base.items[chosen], weights)).log_prob(base.labels[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights.detach()


def build_lwof(options: SibOptions, variant: Variant, base: LabelledItems) -> RateDistortionModule:
    """Model and guide with a mixture prior, one component per base class, which starts as a classifier of the base classes.

    Args:
        base: features of the base classes, in the space of the guide.
    """
    # no gate holds new classes back
    chosen = replace(settings(GuideSettings, options), gate=False)
    means = class_means(base.items, base.labels)
    kind, num_features = find_predictor(variant.predictor), means.shape[-1]
    with seeded(chosen.seed):
        prior, predictor = tight_prior(base_classifier(kind(), base, means, chosen.seed), means), kind()
        offset = NewOffset()
        guide = BaseAndNewGuide(
            prior,
            predictor,
            sib.build_start(chosen, means),
            sib.build_gradient(chosen),
            sib.build_rule(chosen, variant, num_features),
            offset,
            anchor=sib.build_anchor(chosen),
            steps=variant.steps,
            beta=variant.beta or 0.0,
            inner_samples=chosen.inner_samples,
            family=variant.posterior or Family.DELTA,
        )
    return RateDistortionELBO(beta=variant.beta or 0.0)(BaseAndNewModel(prior, predictor, offset), guide)


def tight_prior(weights: Tensor, means: Tensor) -> MixturePrior:
    """One component per base class around its ``weights`` ``[base, D]``, narrower than the classes' ``means`` lie apart: wide
    ones cost the base classes accuracy, whose weights are drawn from them."""
    return MixturePrior(weights, (TIGHTNESS * means.std(0).clamp_min(1e-3)).expand_as(weights))


@torch.no_grad()
def lwof_columns(objective: RateDistortionModule, sampler: BaseAndNewSampler, *, tasks: int, seed: int) -> Columns:
    """The three accuracies of a guide on each of ``tasks`` tasks."""
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
    return Columns(**{name: torch.cat(parts) for name, parts in correct.items()})


@dataclass(frozen=True)
class Fitted:
    """A trained guide, with the map of features that was trained with it.

    Attributes:
        objective: model and guide.
        space: the map.
        tests: tasks that test it, of features that are not mapped.
    """

    objective: RateDistortionModule
    space: FeatureSpace
    tests: BaseAndNewSampler

    @property
    def testing(self) -> BaseAndNewSampler:
        """Tasks that test it."""
        return in_space(self.tests, self.space)

    def state(self) -> nn.ModuleDict:
        """All that was trained."""
        return nn.ModuleDict({"objective": self.objective, "space": self.space})


def in_space(sampler: BaseAndNewSampler, space: FeatureSpace) -> BaseAndNewSampler:
    """The same tasks in a feature space."""
    with torch.no_grad():
        return sampler.on(embed(space, sampler.items))


def fit_lwof(options: SibOptions, run: RunFolder) -> dict[Variant, Fitted]:
    """Train every variant of SIB on tasks of base and new classes.

    The new classes of training tasks are played by base classes. Base queries are images held out of pre-training: half of
    them choose the checkpoint, the other half test.
    """
    features = load_features(run.features)
    check_lwof(options, features["train"], features)
    validation, test = halves(features["held_out"])
    spec, fitted = options.spec(imbalance=None), {}
    tested = replace(spec, within_alphabet=options.tests_within_alphabet)
    samplers = {
        "train": BaseAndNewSampler(EpisodeSampler(features["train"], spec), features["train"], playing=True),
        "val": BaseAndNewSampler(EpisodeSampler(features["val"], spec), validation, playing=False),
        "test": BaseAndNewSampler(EpisodeSampler(features["test"], tested), test, playing=False),
    }
    for variant in sib.variants(settings(VariantSettings, options)):
        space, _ = feature_space(settings(GuideSettings, options), variant.predictor, features["train"])
        objective = build_lwof(options, variant, map_items(space, features["train"]))
        fitted[variant] = Fitted(objective, space, samplers["test"])
        train_lwof(fitted[variant], samplers, options, run, f"lwof-{variant.name}")

        def validating(one: Variant) -> Kinds:
            return (in_space(samplers["val"], fitted[one].space),)

        states = {one: known.state() for one, known in fitted.items()}
        for changed in keep_none_where_it_is_better(states, variant, validating, lwof_schedule(options)):
            save_tensors(run.checkpoints / f"lwof-{changed.name}.safetensors", states[changed].state_dict(), {})
    return fitted


def lwof_schedule(options: SibOptions) -> MetaSchedule:
    """How the guides of the protocol are trained."""
    return replace(settings(MetaSchedule, options), validation_tasks=min(VALIDATION_TASKS, options.validation_tasks))


def lwof_records(options: SibOptions, fitted: Mapping[Variant, Fitted]) -> list[LwofRecord]:
    """Test every guide, each beside its reference without steps."""
    number, seed = options.test_tasks, mix_seed(TEST_SEED)
    tested = {one: lwof_columns(fit.objective, fit.testing, tasks=number, seed=seed) for one, fit in fitted.items()}
    references = {one: tested.get(replace(one, steps=0, reference=True)) for one in fitted}
    return [make_record(options, one, fitted[one].objective, tested[one], references[one]) for one in fitted]


def train_lwof(fit: Fitted, samplers: Mapping[str, BaseAndNewSampler], options: SibOptions, run: RunFolder, stage: str) -> None:
    """Train one guide and its map of features, whose checkpoints are named by ``stage``, or read them back.

    Args:
        samplers: of the splits ``train`` and ``val``, of features that are not mapped.
    """
    finished, schedule = run.checkpoints / f"{stage}.safetensors", lwof_schedule(options)
    if not finished.exists():
        with run.timed(stage), seeded(options.seed):
            once, embedding = fit.space.in_two()
            known = {split: in_space(tasks, once) for split, tasks in samplers.items()}
            module = MetaTraining(fit.objective, known["train"], known["val"], schedule, embedding)
            loop = options.loop.unmixed
            train(module, loop, run, stage, epochs=schedule.validations, monitor="val/loss", patience=schedule.patience)
        keep_steps_that_pay(fit.objective, (in_space(samplers["val"], fit.space),), schedule, stage)
        save_tensors(finished, fit.state().state_dict(), {})
    load_state(fit.state(), finished)


def make_record(
    options: SibOptions, variant: Variant, objective: RateDistortionModule, columns: Columns, reference: Columns | None = None
) -> LwofRecord:
    """The record of one guide.

    Args:
        columns: accuracies on test tasks.
        reference: those without steps, on the same tasks.
    """
    gains = columns.less(reference).named("gain", "gain_ci95") if reference is not None and variant.steps else {}
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
        **columns.named("accuracy", "ci95"),
        **gains,
    )


def percent(record: LwofRecord, name: str) -> str:
    """A column's accuracy with its interval, in %."""
    return f"{100 * getattr(record, f'{name}_accuracy'):.2f} ± {100 * getattr(record, f'{name}_ci95'):.2f}"


def gain(record: LwofRecord, name: str) -> str:
    """What the steps bring a column, with its paired interval, in points."""
    found = getattr(record, f"{name}_gain")
    return "-" if found is None else f"{100 * found:+.2f} ± {100 * getattr(record, f'{name}_gain_ci95'):.2f}"


COLUMNS = (
    Column("predictor", lambda r: r.predictor, left=True),
    Column("β", lambda r: number(r.beta, "g")),
    Column("K", lambda r: f"{r.steps}{' (saw labels)' if r.saw_labels else ''}"),
    *(Column(f"{name.capitalize()} %", lambda r, name=name: percent(r, name)) for name in PARTS),  # type: ignore[misc]
    *(Column(f"{name.capitalize()} +", lambda r, name=name: gain(r, name)) for name in PARTS),  # type: ignore[misc]
)


def format_lwof(records: Iterable[LwofRecord]) -> str:
    """The three columns as text."""
    return format_table(sorted(records, key=lambda record: (record.predictor, record.beta or 0, record.steps)), COLUMNS)
