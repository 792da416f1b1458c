"""Many meta-learners on the same regression tasks: ``python -m inference.svi_meta --data linear``, or another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pyro.distributions import validation_enabled

from data.episodes import Episode
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.posterior import infer
from inference.evaluation.tables import Column, format_table, number
from inference.meta import regression_pictures
from inference.meta.comparison_plots import named
from inference.meta.regression import regret_cell
from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_options import RegressionOptions
from inference.meta.regression_reference import EXACT_BAYES
from inference.meta.regression_scores import MetaRegressionRecord, bound_of, exact_reference, score
from inference.meta.regression_tasks import TEST, VALIDATION, Problem, stream_seed
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.study import Figures, Study
from inference.runs.tensors import load_state, save_tensors

SAVED_DRAWS, SAVED_TASKS = 200, 4  # of a saved posterior

Fits = Mapping[Variant, Fit]

INPUTS = {
    "linear": "",
    "network": "ridge:features=bumps reads radial basis functions of the input, all others the input itself",
    "sinusoids": "prior, conjugate and sib are linear in radial basis functions of the input; all others read the input itself",
    "memorisable": "validation and test tasks are of amplitudes between those of training, and tell a wrong one",
    "ambiguous": "",
    "poses": "test tasks are letters of other scripts; targets are angles in tenths of their range, 180°, of variance 8.33",
}
"""What methods read, by problem."""


def rate_cell(record: MetaRegressionRecord) -> str:
    """Rate per task, or of what all tasks share, which is said to be counted once."""
    return number(record.rate, ".2f") if record.shared_rate is None else f"{record.shared_rate:.0f} once"


COLUMNS = (
    Column("", lambda r: "*" if r.selected else " ", left=True),
    Column("method", named, left=True),
    Column("K", lambda r: str(r.steps) if r.steps else "-"),
    Column("MSE", lambda r: number(r.mse)),
    Column("median", lambda r: number(r.mse_median)),
    Column("RMSE", lambda r: number(r.rmse)),
    Column("NLL", lambda r: number(r.nll)),
    Column("regret", regret_cell),
    Column("in 90 %", lambda r: number(r.coverage90, ".1f", factor=100)),
    Column("noise", lambda r: number(r.noise)),
    Column("rate", rate_cell),
    Column("I(ŷ; D)", lambda r: number(r.support_information, ".2f")),
    Column("diverged %", lambda r: number(r.diverged, ".1f", factor=100)),
    Column("ms/task", lambda r: number(r.adapt_ms, ".2f")),
    Column("tasks/s", lambda r: number(r.tasks_per_second, ".0f")),
    Column("adapted", lambda r: str(r.adapted) if r.adapted else "-"),
    Column("shared", lambda r: str(r.shared) if r.shared else "-"),
)


class MetaRegressionStudy(Study[RegressionOptions, Problem, Fits]):
    """A run of ``svi_meta`` on regression data. A killed run goes on with the method that it was at, from its beginning."""

    command = "svi_meta"

    def load(self) -> Problem:
        return self.options.problem

    def fit(self, data: Problem, run: RunFolder) -> Fits:
        return {variant: fit_variant(variant, self.options, run) for variant in self.options.variants()}

    def tasks(self, stream: int) -> Episode:
        """The tasks of a stream, the same for every method, with the inputs themselves."""
        options, setup = self.options, self.options.setup()
        seed = stream_seed(options.seed, setup.schedule.tasks, stream)
        return setup.draw(options.test_tasks, seed, split="val" if stream == VALIDATION else "test")

    def evaluate(self, data: Problem, fitted: Fits, run: RunFolder) -> Sequence[MetaRegressionRecord]:
        setup, seconds, found = self.options.setup(), run.seconds(), []
        with run.timed("reference"):
            reference = exact_reference(data, self.tasks(TEST), run.path.parent)
        for stream in (VALIDATION, TEST):
            episode, against = self.tasks(stream), reference if stream == TEST else None
            for variant, fit in fitted.items():
                taken = seconds.get(variant.name)
                found.append(score(fit, variant, setup, episode, stream, reference=against, seconds=taken))
        return found

    def choose(self, records: Sequence[MetaRegressionRecord]) -> Sequence[MetaRegressionRecord]:
        best = min((record for record in records if record.split == "val"), key=by_nll)
        return [replace(record, selected=record.variant == best.variant) for record in records]

    def save(self, data: Problem, fitted: Fits, records: Sequence[MetaRegressionRecord], run: RunFolder) -> None:
        """ArviZ data of a few test tasks under every method."""
        episode = self.tasks(TEST).tasks(slice(SAVED_TASKS))
        chosen = next(record.variant for record in records if record.selected)

        def content(variant: Variant, fit: Fit) -> Any:
            known = {"command": self.command, "method": variant.method, "steps": variant.steps, "beta": variant.beta}
            known |= {"dataset": self.options.data, "seed": self.options.seed}
            seen = fit.embed(episode)
            known = {name: value for name, value in known.items() if value is not None}
            posterior = infer(fit.model, fit.guide, seen, **known)
            with validation_enabled(False):  # steps may run away from draws of the prior, whose predictions are then no numbers
                return posterior.to_arviz(seen.query_y, num_samples=SAVED_DRAWS)

        made = {variant.name: partial(content, variant, fit) for variant, fit in fitted.items()}
        save_posteriors(made, chosen, run)

    def who(self, row: Mapping[str, Any]) -> str | None:
        return row["variant"]

    def figures(self, data: Problem, fitted: Fits, records: Sequence[MetaRegressionRecord], run: RunFolder) -> Figures:
        tested = [record for record in records if record.split == "test"]
        about = f"{self.options.data}, {data.shot} support points, {self.options.test_tasks} test tasks"
        found = {"regret_against_time": partial(regression_pictures.regret_against_time, tested, about=about)}
        if data.num_inputs > 1:
            return found
        curves = {named(variant): fit for variant, fit in fitted.items()}
        return found | {"curves": partial(regression_pictures.curves, curves, data, seed=self.options.seed)}

    def report(self, data: Problem, records: Sequence[MetaRegressionRecord]) -> str:
        options = self.options
        tested = sorted((record for record in records if record.split == "test"), key=by_nll)
        title = f"{options.data}, {data.shot} support points, {options.test_tasks} test tasks, {options.tasks} training tasks"
        notes = "* chosen on validation tasks; NLL, regret and I(ŷ; D) in nats per query, rate in nats per task;\n"
        notes += f"MSE of targets with noise, whose standard deviation is {data.noise:g}: mean and median over tasks;\n"
        first = tested[0]
        if first.reference == EXACT_BAYES:
            notes += "regret: against exact Bayes under the law that tasks are drawn from"
            notes += f", whose NLL is {number(first.exact_nll)}"
        elif first.reference is None:
            notes += "regret: there is nothing exact to hold these tasks against"
        else:
            notes += f"regret: against {first.reference}, whose own error is ± {first.regret_error:.3f}"
            notes += ", on the first test tasks; prior and sib know the true prior and noise, as it does"
        added = [INPUTS[data.name], *(bound_note(record, options.setup()) for record in tested)]
        return f"{title}\n{format_table(tested, COLUMNS)}\n\n{notes}" + "".join(f"\n{note}" for note in added if note)


def bound_note(record: MetaRegressionRecord, setup: Setup) -> str:
    """What the PAC-Bayes bound says of a method on new tasks that are drawn as the training tasks were, where there is one."""
    if record.shared_rate is None or record.bounded_loss is None:
        return ""
    bound = bound_of(record.bounded_loss, record.shared_rate, setup)
    return f"min(1, squared error) of {named(record)} on new tasks like those of training, by PAC-Bayes, is at most {bound}"


def by_nll(record: MetaRegressionRecord) -> float:
    """What records are sorted by."""
    return math.inf if record.nll is None else record.nll


def fit_variant(variant: Variant, options: RegressionOptions, run: RunFolder) -> Fit:
    """A variant trained, or read back where that is finished.

    Raises:
        UserError: its checkpoint is damaged or of another configuration, or the loss is not finite.
    """
    path, method, setup = run.checkpoints / f"{variant.name}.safetensors", REGRESSION_METHODS[variant.method], options.setup()
    if path.exists():
        fit = method.build(setup, variant)
        load_state(fit, path)
        return fit
    print(f"training {variant.name} ...", flush=True)
    with run.timed(variant.name):
        fit = method.train(setup, variant)
    save_tensors(path, fit.state_dict(), {})
    return fit
