"""Zero-shot tasks over domains, ``--data letters-domains``: the classes keep their meaning, their look is new in each task.

A task has no support. The guide starts from λ, learned and the same for every task, or from λ(x), which sees the unlabelled
queries; K steps on these adapt the classifier to the domain. Source: Hu et al. 2019, section 2 (b).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from data.catalogue import load_domains
from data.domains import TaskBank, joined
from data.episodes import Episode, TaskSpec
from data.errors import UserError
from data.items import LabelledItems
from data.mixed import MixedSampler
from data.seeding import mix_seed, seeded
from data.sources.domains import FACES, LetterDomains
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.evaluate import evaluate_readings, readings
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import place_of
from inference.meta.classifiers import DomainClassifier, classifier_training
from inference.meta.domain_figures import domain_figures
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import feature_space
from inference.meta.options import SibOptions
from inference.meta.pretrain import WATCHED
from inference.meta.report import (
    UNITS,
    TaskRecord,
    final_records,
    format_records,
    guessing,
    make_record,
    mark_selected,
    selected_variant,
)
from inference.meta.settings import GuideSettings, MetaSchedule, settings
from inference.meta.steps import keep_none_where_it_is_better, keep_steps_that_pay
from inference.meta.task_options import PROTOCOLS, Protocol
from inference.meta.temperature import fit_temperature
from inference.meta.training import MetaTraining
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.study import Figures, Study
from inference.runs.tensors import load_state, load_tensors, save_tensors
from inference.runs.training import train
from inference.runs.values import NonNegativeInt, PositiveInt, TwoOrMore, plain
from models.networks.backbones import CosineClassifier
from models.networks.batch_norm import batch_norms
from models.networks.feature_network import FeatureNetwork
from models.networks.layers import embed

CLASSIFIER_DOMAINS, GUIDE_DOMAINS = 64, 192
"""Training domains that the classifier learns from, and others that the guide learns from."""
IMBALANCE = 2.0
"""Concentration of the Dirichlet that draws how frequent letters are in half of the guide's domains."""
SAVED_DRAWS, SAVED_TASKS = 200, 3  # of a saved posterior

USELESS = (
    *("root", "features", "holdout", "weights", "generations"),  # pre-training on classes
    *("shot", "imbalance", "methods", "train_way", "train_shot", "test_way", "test_shot"),  # a support, and classes that change
    "within_alphabet",
    *("network_tasks", "network_batch", "network_learning_rate", "batch_norm", "accumulate"),  # training of the whole network
)
"""Options that tasks over domains do nothing with."""

NOTES = f"""* chosen on validation domains; {UNITS}
classifier: the feature network with the classifier it was trained with, as they are; batch-norm: the same with batch norm by
the queries of each task, as far as validation domains ask for it"""


@dataclass(frozen=True, kw_only=True)
class DomainOptions(SibOptions):
    """The options with what tasks over domains have as defaults.

    Args:
        way: letters, from A on.
        queries: pictures of a letter in a domain, on average.
        initialisation: of the task's weights: learned (data-independent) or queries (which sees the unlabelled queries).
        mixed: half of the guide's domains have letters unequally often.
        validation_tasks: validation domains.
        test_tasks: test domains.
    """

    data: str = "letters-domains"
    epochs: NonNegativeInt = 5
    way: TwoOrMore = 26
    queries: PositiveInt = 4
    initialisation: Literal["support", "learned", "queries"] = "learned"
    tasks: PositiveInt = 3200
    validation_tasks: TwoOrMore = 64
    test_tasks: TwoOrMore = 200

    def check(self) -> None:
        super().check()
        if self.initialisation == "support":
            raise UserError("tasks over domains have no support: choose `initialisation=learned` or `initialisation=queries`")
        if self.train_features == "all":
            raise UserError("over domains the network learns from labels alone: choose `train_features=linear` or none")
        if Protocol.LWOF in self.protocols:
            raise UserError("tasks over domains have no new classes: choose `protocols=standard,imbalanced`")
        if changed := [f for f in fields(self) if f.name in USELESS and getattr(self, f.name) != f.default]:
            given = ", ".join(f"`{f.name}={plain(getattr(self, f.name))}`" for f in changed)
            raise UserError(f"tasks over domains (`data={self.data}`) have no use for {given}: leave it out")

    def spec(self, **changes: Any) -> TaskSpec:
        return super().spec(**{"shot": 0, **changes})


Pools = Mapping[str, Episode]
"""Features of tasks: ``train`` and ``val``, and the test tasks of each protocol by its name."""


@dataclass(frozen=True)
class Fits:
    """What a run has trained.

    Attributes:
        classifier: the ordinary one.
        learners: guides on its features.
        pools: features of all tasks.
    """

    classifier: DomainClassifier
    learners: dict[Variant, FittedLearner]
    pools: Pools


class DomainStudy(Study[DomainOptions, LetterDomains, Fits]):
    """A run of ``svi_sib`` on tasks over domains: train a classifier on labelled domains, then guides that adapt it to others
    of which nothing is labelled."""

    command = "svi_sib"

    def load(self) -> LetterDomains:
        options = self.options
        data = replace(load_domains(options.data, image_size=options.image_size, seed=options.seed), way=options.way)
        faces = ", ".join(f"{len(faces)} for {split}" for split, faces in FACES.items())
        print(f"{data.name}: {data.way} letters; faces: {faces}; each domain has a style of its own")
        return data

    def check(self, data: LetterDomains) -> None:
        """Fail where the network cannot be built, or features have fewer directions than are asked for."""
        options = self.options
        num_features = FeatureNetwork(options.backbone, data.image_shape).num_features
        for predictor in options.predictor:
            settings(GuideSettings, options).feature_rank(predictor, data.way, num_features)

    def fit(self, data: LetterDomains, run: RunFolder) -> Fits:
        options = self.options
        classifier = fit_classifier(options, data, run)
        pools = embedded_pools(options, data, classifier.network, run)
        learners: dict[Variant, FittedLearner] = {}
        for variant in options.variants():
            learners[variant] = learner = build_learner(options, variant, pools["train"], classifier.network, data)
            fit_guide(options, learner, pools, run)
            states = {one: known.state() for one, known in learners.items()}
            schedule, tasks = settings(MetaSchedule, options), lambda one: deciding(learners[one], pools)
            for changed in keep_none_where_it_is_better(states, variant, tasks, schedule):
                learners[changed].save(run.checkpoints / f"{changed.name}.safetensors", network=False)
        return Fits(classifier, learners, pools)

    def evaluate(self, data: LetterDomains, fitted: Fits, run: RunFolder) -> Sequence[TaskRecord]:
        records = []
        for learner in fitted.learners.values():
            records += guide_records(learner, fitted.pools, "val")[-1:]
            for protocol in self.options.protocols:
                records += guide_records(learner, fitted.pools, protocol, steps=self.options.test_steps)
        return [*records, *classifier_records(self.options, data, fitted)]

    def choose(self, records: Sequence[TaskRecord]) -> Sequence[TaskRecord]:
        return mark_selected(records)

    def save(self, data: LetterDomains, fitted: Fits, records: Sequence[TaskRecord], run: RunFolder) -> None:
        """ArviZ data of the first test domains under every guide."""
        tasks = next(iter(test_pools(fitted.pools))).tasks(slice(SAVED_TASKS))

        def content(learner: FittedLearner) -> Any:
            known = {"command": self.command, **learner.attributes()}
            posterior = infer(learner.model, learner.guide, mapped(learner, tasks), **known)
            names = data.class_names
            return posterior.to_arviz(tasks.query_y, num_samples=SAVED_DRAWS, class_names=names, seed=self.options.seed)

        made = {variant.name: partial(content, learner) for variant, learner in fitted.learners.items()}
        save_posteriors(made, selected_variant(fitted.learners, records).name, run)

    def who(self, row: Mapping[str, Any]) -> str | None:
        """Variant and kind of tasks, of rows read at the K that was trained."""
        kind = "balanced" if row["balanced"] else "imbalanced"
        return f"{row['variant']}/{kind}" if row["steps"] == row["trained_steps"] else None

    def figures(self, data: LetterDomains, fitted: Fits, records: Sequence[TaskRecord], run: RunFolder) -> Figures:
        chosen = selected_variant(fitted.learners, records)
        tasks = next(iter(test_pools(fitted.pools)))
        shown = {variant: mapped(learner, tasks) for variant, learner in fitted.learners.items()}
        return domain_figures(fitted.learners, chosen, data, shown, records, run)

    def report(self, data: LetterDomains, records: Sequence[TaskRecord]) -> str:
        options, final = self.options, final_records(records)
        title = f"{data.name}, {data.way} letters, no support, {options.test_tasks} test domains of {len(FACES['test'])} faces"
        title += f", λ: {options.initialisation}, {options.gradient} gradient network"
        return f"{title}\n{format_records(final)}\n\n{NOTES}\n{guessing(final[0])}"


def fit_classifier(options: DomainOptions, data: LetterDomains, run: RunFolder) -> DomainClassifier:
    """Train network and classifier on labelled domains, or read them back."""
    with seeded(options.seed):
        network = FeatureNetwork(options.backbone, data.image_shape)
        network.to(memory_format=torch.channels_last)  # as it is trained: read back, it gives the same to the last digit
        classifier = DomainClassifier(network, CosineClassifier(network.num_features, data.way))
    head = run.checkpoints / "classifier.safetensors"
    if not head.exists():
        labelled = data.tasks("train", slice(0, CLASSIFIER_DOMAINS), options.queries)
        assert labelled.query_y is not None
        items = LabelledItems(labelled.query_x.flatten(0, 1), labelled.query_y.flatten(), data.class_names)
        network.standardize.fit(items.items)
        if options.epochs:
            validation = data.tasks("val", slice(0, options.validation_tasks), options.queries)
            with run.timed("pretrain"), seeded(options.seed):
                module = classifier_training(classifier, items, validation, epochs=options.epochs, seed=options.seed)
                train(module, options.loop, run, "pretrain", epochs=module.epochs, monitor=WATCHED, mode="max")
        save_tensors(run.network, network.state_dict(), network.description())
        save_tensors(head, classifier.head.state_dict(), {})
    load_state(network, run.network)
    load_state(classifier.head, head)
    return classifier


def drawn_pools(options: DomainOptions, data: LetterDomains) -> dict[str, Any]:
    """What draws the images of each pool of tasks."""

    def halves(split: str, start: int, count: int) -> Episode:
        half = count // 2 if options.mixed else 0
        parts = ((slice(start, start + half), IMBALANCE), (slice(start + half, start + count), None))
        return joined(
            data.tasks(split, part, options.queries, imbalance=kind) for part, kind in parts if part.start < part.stop
        )

    def tested(protocol: Protocol) -> Episode:
        return data.tasks("test", slice(0, options.test_tasks), options.queries, imbalance=PROTOCOLS[protocol])

    training = partial(halves, "train", CLASSIFIER_DOMAINS, GUIDE_DOMAINS)
    return {"train": training, "val": partial(halves, "val", 0, options.validation_tasks)} | {
        protocol: partial(tested, protocol) for protocol in options.protocols
    }


def embedded_pools(options: DomainOptions, data: LetterDomains, network: FeatureNetwork, run: RunFolder) -> Pools:
    """Features of all tasks, which the run keeps in ``domains.safetensors``."""
    file = run.path / "domains.safetensors"
    if not file.exists():
        tensors: dict[str, Tensor] = {}
        with run.timed("embed"):
            for name, draw in drawn_pools(options, data).items():
                images = draw()
                features = embed(network, images.query_x.flatten(0, 1)).unflatten(0, images.query_y.shape)
                tensors |= {f"{name}.x": features, f"{name}.y": images.query_y}
        save_tensors(file, tensors, {"classes": data.class_names, "dataset": data.name})
    tensors = load_tensors(file)[0]
    return {
        name: Episode(x[:, :0], y[:, :0], x, y, data.way)
        for name, x, y in ((name, tensors[f"{name}.x"], tensors[f"{name}.y"]) for name in drawn_pools(options, data))
    }


def test_pools(pools: Pools) -> Iterable[Episode]:
    """Those of test tasks."""
    return (tasks for name, tasks in pools.items() if name in PROTOCOLS)


def build_learner(
    options: DomainOptions, variant: Variant, tasks: Episode, network: FeatureNetwork, data: LetterDomains
) -> FittedLearner:
    """An untrained guide whose start is at the letters' mean features in training ``tasks`` of the ``data``."""
    assert tasks.query_y is not None
    chosen = settings(GuideSettings, options)
    items = LabelledItems(tasks.query_x.flatten(0, 1), tasks.query_y.flatten(), data.class_names)
    space, means = feature_space(chosen, variant.predictor, items)
    return FittedLearner.build(variant, chosen, options.spec(), space, means, network, data.name)


def fit_guide(options: DomainOptions, learner: FittedLearner, pools: Pools, run: RunFolder) -> None:
    """Train one guide, with its map of features where that is learned, choosing its checkpoint on validation domains; or read
    it back."""
    name, schedule = learner.variant.name, settings(MetaSchedule, options)
    finished = run.checkpoints / f"{name}.safetensors"
    if not finished.exists():
        learned = any(True for _ in learner.space.parameters())
        known = {split: TaskBank(pools[split] if learned else mapped(learner, pools[split])) for split in ("train", "val")}
        with run.timed(name), seeded(schedule.seed):
            embedding = learner.space if learned else None
            module = MetaTraining(learner.objective, known["train"], known["val"], schedule, embedding)
            epochs, patience = schedule.validations, schedule.patience
            train(module, options.loop.unmixed, run, name, epochs=epochs, monitor="val/loss", mode="min", patience=patience)
        decide = deciding(learner, pools)
        keep_steps_that_pay(learner.objective, decide, schedule, name)
        fit_temperature(learner.objective, decide, schedule)
        learner.save(finished, network=False)
    load_state(learner.state(), finished)


def deciding(learner: FittedLearner, pools: Pools) -> tuple[MixedSampler]:
    """Training and validation tasks, which decide about trained steps together."""
    return (MixedSampler([TaskBank(mapped(learner, pools[split])) for split in ("train", "val")]),)


@torch.no_grad()
def mapped(learner: FittedLearner, tasks: Episode) -> Episode:
    """The same tasks in the learner's feature space, where its parameters are."""
    device, dtype = place_of(learner.guide, learner.model, learner.space)
    there = tasks.to(device, dtype=dtype)
    return there._replace(support_x=learner.space(there.support_x), query_x=learner.space(there.query_x))


def guide_records(learner: FittedLearner, pools: Pools, pool: str, *, steps: int | None = None) -> list[TaskRecord]:
    """A guide's records on a ``pool`` of tasks, after 0, 1, … ``steps``; as many as were trained when not given, or where no
    step was."""
    tasks, split = mapped(learner, pools[pool]), "val" if pool == "val" else "test"
    law = None if split == "val" else PROTOCOLS[Protocol(pool)]
    spec, seeing = replace(learner.spec, imbalance=law), bool(getattr(learner.guide, "saw_labels", False))
    guides = readings(learner.guide, steps if learner.variant.steps else None)
    scores = evaluate_readings(learner.model, guides, tasks, tasks=len(tasks.query_x), seed=mix_seed(TEST_SEED))
    return [make_record(learner.variant, spec, split, k, found, saw_labels=seeing) for k, found in scores.items()]


def classifier_records(options: DomainOptions, data: LetterDomains, fitted: Fits) -> list[TaskRecord]:
    """Test records of the classifier as it is, and where it has batch norm, with that of each task's own queries."""
    classifier, draw = fitted.classifier, drawn_pools(options, data)
    share = classifier.best_share(draw["val"]().tasks(slice(None, None, 4))) if batch_norms(classifier.network) else 0.0
    found = {}
    for protocol in options.protocols:
        found["classifier", protocol] = classifier.scores(fitted.pools[protocol])
        if share:
            found["batch-norm", protocol] = classifier.scores(draw[protocol](), share=share)
    if share:
        print(f"batch norm: {share:g} of its statistics are the queries', as validation domains have it")
    kinds = {name: Variant(name, "cosine", None, None, 0, reference=True) for name in ("classifier", "batch-norm")}
    return [
        make_record(kinds[name], options.spec(imbalance=PROTOCOLS[protocol]), "test", 0, scores)
        for (name, protocol), scores in found.items()
    ]
