"""``python -m inference.svi_sib``: pre-train features, train the guide, evaluate, draw."""

from __future__ import annotations

from inference.runs.beginning import begin

if __name__ == "__main__":
    begin()

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from data.catalogue import DOMAINS, FEW_SHOT
from data.episodes import EpisodeSampler
from data.errors import UserError, choose
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import place_of
from inference.meta import base_and_new
from inference.meta.base_and_new import LwofRecord, check_lwof, fit_lwof, format_lwof, lwof_records
from inference.meta.domains import DomainOptions, DomainStudy
from inference.meta.draw import figures
from inference.meta.learner import FittedLearner
from inference.meta.options import SibOptions
from inference.meta.regression import PROBLEMS, RegressionStudy
from inference.meta.report import (
    UNITS,
    TaskRecord,
    evaluate_protocols,
    final_records,
    format_records,
    guessing,
    mark_selected,
    selected_variant,
    validate,
)
from inference.meta.source import Source, check_test_tasks, load_source, name_of_source
from inference.meta.stages import check_training, fit
from inference.meta.task_options import Protocol
from inference.meta.variants import Variant
from inference.runs.commands import flags_in_errors, given_value, read_command, run_process
from inference.runs.folder import RunFolder
from inference.runs.help import Example
from inference.runs.study import Figures, Study
from inference.runs.tensors import load_features

DESCRIPTION = """Synthetic information bottleneck: few-shot classification by transductive empirical Bayes.
Without arguments it runs the whole job on embedded letters in under three minutes."""
EXAMPLES = (
    Example("", "embedded letters"),
    Example("--data folder --root my_images --image-size 64", "images in folders by class"),
    Example("--beta 1e-3,1e-2,0.1,1 --predictor distance,cosine", "a sweep, and its rate–distortion curve"),
    Example("--data letters-domains", "zero-shot: known letters in a hand never seen"),
)
NOTES = f"* chosen on validation tasks; {UNITS}"
SAVED_DRAWS, SAVED_TASKS, SAVED_NUMBERS = 200, 8, 2_000_000  # draws, most tasks, most class probabilities of a saved posterior

Records = Sequence[TaskRecord | LwofRecord]


class Fits(NamedTuple):
    """What a run has trained: learners, and guides of the LwoF protocol."""

    learners: dict[Variant, FittedLearner]
    lwof: dict[Variant, base_and_new.Fitted]


class SibStudy(Study[SibOptions, Source, Fits]):
    """A run of ``svi_sib`` on images."""

    command = "svi_sib"

    def load(self) -> Source:
        return load_source(self.options)

    def check(self, data: Source) -> None:
        """Fail where a split cannot give the tasks that will be asked of it, or the network cannot be built; and say what
        cannot come out well."""
        options = self.options
        if options.initialisation != "support":
            start = f"a start that ignores them ({options.initialisation})"
            print(f"note: labels are arbitrary in each task: {start} scores chance; it is for --data {next(iter(DOMAINS))}")
        if Protocol.LWOF in options.protocols:
            check_lwof(options, data.part("train"), data.features)
        check_training(options, data.images, data.features)
        check_test_tasks(options, data.part("test"))

    def fit(self, data: Source, run: RunFolder) -> Fits:
        learners = fit(self.options, data.images, run)
        return Fits(learners, fit_lwof(self.options, run) if Protocol.LWOF in self.options.protocols else {})

    def evaluate(self, data: Source, fitted: Fits, run: RunFolder) -> Records:
        options, learners = self.options, fitted.learners
        tested = evaluate_protocols(learners, options.test_specs(), options.test_tasks, run, steps=options.test_steps)
        return [*validate(learners, run), *tested, *lwof_records(options, fitted.lwof)]

    def choose(self, records: Records) -> Records:
        return [*mark_selected(of_tasks(records)), *of_lwof(records)]

    def save(self, data: Source, fitted: Fits, records: Records, run: RunFolder) -> None:
        """ArviZ data of the same test tasks, eight where they are not large, under every learner; ``lwof-<name>`` under every
        guide of the LwoF protocol."""
        chosen = selected_variant(fitted.learners, of_tasks(records))
        part, seed = load_features(run.features)["test"], self.options.seed
        spec = self.options.spec(imbalance=None, within_alphabet=self.options.tests_within_alphabet)
        tasks = EpisodeSampler(part, spec, split="test split").sample(
            saved_tasks(spec.way * spec.queries * spec.way), seed=seed
        )

        def content(learner: FittedLearner) -> Any:
            mapped = tasks._replace(support_x=learner.space(tasks.support_x), query_x=learner.space(tasks.query_x))
            return export(learner, mapped, learner.attributes())

        def lwof_content(variant: Variant, fit: base_and_new.Fitted) -> Any:
            classes, learner = fit.testing.base.num_classes + spec.way, fitted.learners[variant]
            drawn = fit.testing.sample(saved_tasks(2 * spec.way * spec.queries * classes), seed=seed)
            return export(fit.objective, drawn, {**learner.attributes(), "protocol": "lwof"})

        def export(fit: Any, episode: Any, known: Mapping[str, Any]) -> Any:
            device, dtype = place_of(fit.guide, fit.model)
            posterior = infer(fit.model, fit.guide, episode.to(device, dtype=dtype), command=self.command, **known)
            return posterior.to_arviz(episode.query_y, num_samples=SAVED_DRAWS, seed=seed)

        made = {variant.name: partial(content, learner) for variant, learner in fitted.learners.items()}
        made |= {f"lwof-{variant.name}": partial(lwof_content, variant, fit) for variant, fit in fitted.lwof.items()}
        save_posteriors(made, chosen.name, run)

    def who(self, row: Mapping[str, Any]) -> str | None:
        """Variant and kind of tasks, of rows read at the K that was trained."""
        if row.get("protocol"):
            return f"{row['variant']}/{row['protocol']}"
        kind = "balanced" if row["balanced"] else "imbalanced"
        if len({(spec.way, spec.shot) for spec in self.options.test_specs()}) > 1:
            kind = f"{row['way']}-way {row['shot']}-shot {kind}"
        return f"{row['variant']}/{kind}" if row["steps"] == row["trained_steps"] else None

    def figures(self, data: Source, fitted: Fits, records: Records, run: RunFolder) -> Figures:
        chosen = selected_variant(fitted.learners, of_tasks(records))
        return figures(fitted.learners, chosen, data.images, of_tasks(records), run)

    def report(self, data: Source, records: Records) -> str:
        options = self.options
        shapes = dict.fromkeys(spec.shape for spec in options.test_specs() or [options.spec()])
        title = f"{self.dataset(data)}, {', '.join(shapes)}, {options.test_tasks} test tasks"
        if "sib" in options.methods:
            title += f", {options.posterior} posterior, {options.gradient} gradient network"
        final = final_records(of_tasks(records))
        text = f"{title}\n{format_records(final)}\n\n{NOTES}" + "".join(
            dict.fromkeys(f"\n{guessing(record)}" for record in final)
        )
        if lwof := of_lwof(records):
            text += f"\n\nlearning without forgetting, {options.test_tasks} tasks\n{format_lwof(lwof)}\n"
        return text

    def dataset(self, data: Source) -> str:
        return name_of_source(self.options)


def saved_tasks(numbers: int) -> int:
    """How many test tasks a saved posterior has.

    Args:
        numbers: class probabilities of a draw of one task.
    """
    return max(1, min(SAVED_TASKS, SAVED_NUMBERS // (SAVED_DRAWS * numbers)))


def of_tasks(records: Records) -> list[TaskRecord]:
    """Records of tasks of new classes."""
    return [record for record in records if isinstance(record, TaskRecord)]


def of_lwof(records: Records) -> list[LwofRecord]:
    """Records of tasks of base and new classes."""
    return [record for record in records if isinstance(record, LwofRecord)]


@flags_in_errors(SibOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder.

    Raises:
        UserError: bad options or data.
    """
    kind = DomainOptions if given_value(SibOptions, "data", arguments) in DOMAINS else SibOptions
    options, run = read_command(kind, "svi_sib", DESCRIPTION, arguments, examples=EXAMPLES)
    if options.data not in (known := (*FEW_SHOT, *DOMAINS, *PROBLEMS)):
        raise UserError(f"unknown data set {options.data!r}: {choose(options.data, known)}")
    return study_of(options).run(run)


def study_of(options: SibOptions) -> Study:
    """What a run on the options' data set does."""
    if isinstance(options, DomainOptions):
        return DomainStudy(options)
    return RegressionStudy(options) if options.data in PROBLEMS else SibStudy(options)


if __name__ == "__main__":
    run_process(main)
