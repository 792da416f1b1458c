"""``python -m inference.svi_meta``: many meta-learners on the same features and the same tasks, one table."""

from __future__ import annotations

from inference.runs.beginning import begin

if __name__ == "__main__":
    begin()

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from data.ambiguous import sampler_of
from data.catalogue import FEW_SHOT, is_attributed
from data.episodes import Attributes, EpisodeSampler
from data.errors import UserError, choose
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import place_of
from inference.meta.active import active_figures, compare_active
from inference.meta.comparison import FEW, MetaRecord, compare, figures, format_comparison
from inference.meta.family_options import AttributeOptions, MetaOptions
from inference.meta.learner import FittedLearner
from inference.meta.mapping import map_items
from inference.meta.regression_comparison import MetaRegressionStudy
from inference.meta.regression_options import DEFAULT, RegressionOptions
from inference.meta.report import UNITS, guessing, mark_selected, selected_variant
from inference.meta.semi import compare_semi
from inference.meta.source import Source, check_test_tasks, load_source, name_of_source
from inference.meta.stages import check_training, features_of, fit
from inference.meta.task_options import Protocol
from inference.meta.variants import Variant
from inference.runs.commands import flags_in_errors, given_value, read_command, run_process
from inference.runs.folder import RunFolder
from inference.runs.help import Example
from inference.runs.study import Figures, Study

DESCRIPTION = """Meta-learners side by side: metric, gradient, closed-form, graph and Bayesian methods on the same tasks, and
what each predicts measured by the same numbers. Without arguments it runs on embedded letters in under three minutes."""
EXAMPLES = (
    Example("", "eight methods on embedded letters"),
    Example("--methods prototypical,anil:steps=10,r2d2:posterior=full", "some, with options of their own"),
    Example("--data folder --root my_images --image-size 64 --train-features all", "each trains a network of its own"),
    Example("--data linear", "regression; or network, sinusoids, ambiguous, memorisable, poses"),
)
NOTES = (
    f"* chosen on validation tasks; T: transductive, sees the other queries; {UNITS}\n"
    "temperatures are fitted on training and validation tasks, but for β of 1 or more, whose bound they would loosen"
)
GAINS = {
    Protocol.SEMI: "gain: of accuracy, over the same method on the same tasks with the unlabelled support items left out",
    Protocol.ACTIVE: "gain of labels that are asked for: over the same method on the same tasks with as many at random",
}
ANSWERS = (
    f"{Attributes.UNAMBIGUOUS}: the support tells which two of three attributes decide (five items of each class in 98 of 100\n"
    "tasks, one in 50);\n"
    f"{Attributes.AMBIGUOUS}: it does not, and queries ask for each of three, the posterior seeing as many as in training\n"
    f"coverage: how many of these three are found by {FEW} draws, by chance too where draws are alike; joint NLL: of all "
    "queries of one together, nats per query"
)
SAVED_DRAWS, SAVED_TASKS = 200, 4

Fits = Mapping[Variant, FittedLearner]


class MetaStudy(Study[MetaOptions, Source, Fits]):
    """A run of ``svi_meta`` on images or features."""

    command = "svi_meta"

    def load(self) -> Source:
        return load_source(self.options)

    def check(self, data: Source) -> None:
        check_training(self.options, data.images, data.features)
        check_test_tasks(self.options, data.part("test"))
        for spec in self.options.hidden_specs():
            EpisodeSampler(data.part("test"), spec, split="test split")

    def fit(self, data: Source, run: RunFolder) -> Fits:
        return fit(self.options, data.images, run)

    def evaluate(self, data: Source, fitted: Fits, run: RunFolder) -> Sequence[MetaRecord]:
        usual = compare(fitted, self.options, data.images, run)
        asked = compare_active(fitted, self.options, data.images, run)
        return [*usual, *compare_semi(fitted, self.options, data.images, run), *asked]

    def choose(self, records: Sequence[MetaRecord]) -> Sequence[MetaRecord]:
        return mark_selected(records)  # type: ignore[return-value]

    def save(self, data: Source, fitted: Fits, records: Sequence[MetaRecord], run: RunFolder) -> None:
        """ArviZ data of the same few test tasks under every method."""
        within = self.options.tests_within_alphabet
        spec, seed = self.options.spec(imbalance=None, within_alphabet=within, partition=None), self.options.seed

        def content(learner: FittedLearner) -> Any:
            part = map_items(learner.space, features_of(learner, data.images, run, "test"))
            episode = sampler_of(part, spec, split="test split").sample(SAVED_TASKS, seed=seed)
            device, dtype = place_of(learner.guide, learner.model)
            known = learner.attributes()
            posterior = infer(learner.model, learner.guide, episode.to(device, dtype=dtype), command=self.command, **known)
            return posterior.to_arviz(episode.query_y, num_samples=SAVED_DRAWS, seed=seed)

        made = {variant.name: partial(content, learner) for variant, learner in fitted.items()}
        save_posteriors(made, selected_variant(fitted, records).name, run)

    def who(self, row: Mapping[str, Any]) -> str | None:
        kind = MetaRecord(**row).kind
        return f"{row['variant']}/{row['way']}-way {row['shot']}-shot {kind}"

    def figures(self, data: Source, fitted: Fits, records: Sequence[MetaRecord], run: RunFolder) -> Figures:
        usual = figures(fitted, data.images, records, self.options, run)
        return {**usual, **active_figures(records, self.dataset(data), self.options.test_tasks)}

    def report(self, data: Source, records: Sequence[MetaRecord]) -> str:
        test = [record for record in records if record.split == "test"]
        trained = ", ".join(dict.fromkeys(record.train_features for record in test))  # those of whole networks are all
        title = f"{self.dataset(data)}, {self.options.test_tasks} test tasks, trained features: {trained}"
        costs = "".join(dict.fromkeys(f"\n{guessing(r)}{f' ({r.kind})' if r.attributes else ''}" for r in test))
        notes = [GAINS[name] for name in self.options.protocols if name in GAINS] + [ANSWERS] * self.options.attributed
        more = "".join(f"\n{note}" for note in notes)
        return f"{title}\n{format_comparison(test)}\n\n{NOTES}{more}{costs}"

    def dataset(self, data: Source) -> str:
        return name_of_source(self.options)


@flags_in_errors(MetaOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder.

    Raises:
        UserError: bad options or data.
    """
    if given_value(MetaOptions, "data", arguments) in DEFAULT:
        given, run = read_command(RegressionOptions, "svi_meta", DESCRIPTION, arguments, examples=EXAMPLES)
        return MetaRegressionStudy(given).run(run)
    kind = AttributeOptions if is_attributed(given_value(MetaOptions, "data", arguments)) else MetaOptions
    options, run = read_command(kind, "svi_meta", DESCRIPTION, arguments, examples=EXAMPLES)
    if options.data not in FEW_SHOT:
        raise UserError(f"unknown data set {options.data!r}: {choose(options.data, (*FEW_SHOT, *DEFAULT))}")
    return MetaStudy(options).run(run)


if __name__ == "__main__":
    run_process(main)
