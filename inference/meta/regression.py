"""Few-shot regression on the same hierarchy: ``--data linear``, ``--data network`` and ``--data sinusoids``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.episodes import Episode
from data.errors import UserError
from data.seeding import mix_seed, seeded
from inference.diagnostics.calibration import central_coverage, distribution_level
from inference.diagnostics.regret import linear_log_predictive, mixture_log_density, regret
from inference.elbo import RateDistortionModule
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import labels_of, predictive, trace_guide, trace_model
from inference.evaluation.tables import Column, format_table, number
from inference.meta.options import SibOptions
from inference.meta.regression_guides import (
    CONJUGATE,
    build_guide,
    fit_evidence,
    fit_guide,
    posterior_moments,
    tempered,
    training_objective,
)
from inference.meta.regression_reference import EXACT_BAYES, Reference, reference_for
from inference.meta.regression_tasks import SUPPORT, TEST, VALIDATION, Problem, exact_nll, stream_seed
from inference.meta.settings import GuideSettings, MetaSchedule, settings
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from inference.runs.study import Figures, Study
from inference.runs.tensors import load_state, save_tensors
from inference.runs.values import plain
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor

PROBLEMS = ("linear", "network", "sinusoids")
DRAWN = 400  # posterior draws of the predictive distribution
SAVED_DRAWS = 1000  # of a saved posterior: so many that leave-one-out estimates are right to a few hundredths of a nat
TASKS_AT_ONCE = 50

USELESS = (
    *("root", "image_size", "backbone", "epochs", "weights", "features", "holdout", "precision", "devices"),  # images
    *("way", "shot", "train_way", "train_shot", "mixed", "imbalance", "within_alphabet", "protocols"),  # classes
    *("power", "train_features", "feature_learning_rate", "feature_decay", "network_tasks", "network_batch"),  # features
    *("network_learning_rate", "batch_norm", "accumulate", "compile"),
    *("methods", "predictor", "rank", "inner_lr", "units", "patience", "validations"),  # what regression has its own of
)
"""Options that regression does nothing with."""

Fits = Mapping[Variant, RateDistortionModule]


@dataclass(frozen=True)
class RegressionRecord:
    """One row of ``metrics.json``.

    Attributes:
        split, shot, queries, episodes: the tasks.
        steps: K; 0 where nothing is unrolled.
        method: ``conjugate``, the exact posterior of the learned model, or ``sib``.
        variant: its name.
        start, gradient: of the steps; ``None`` for ``conjugate``.
        beta: weight of the rate.
        rmse: of the predictive mean, in the target's unit.
        nll: −log predictive density, nats per query, each query by itself.
        exact_nll: the same of exact Bayes under the law that tasks are drawn from; ``None`` where it is not known.
        regret, regret_ci95: mean log p*(y given x, support) − log q(y given x, support), nats per query, and the half-width
            of its 95 % interval over tasks; ``None`` where there is no reference.
        regret_error: 95 % half-width of the reference's own error.
        reference: ``exact Bayes`` (under the true prior and noise) or ``NUTS``; ``None`` where there is none.
        coverage90: share of queries in the central 90 % predictive interval.
        noise: standard deviation of the model; the true one is in :data:`~inference.meta.regression_tasks.NOISE`.
        rate, distortion, neg_elbo: nats per task; distortion is of the queries.
        selected: whether validation tasks chose it.
    """

    split: str
    steps: int
    shot: int
    queries: int
    episodes: int
    method: str
    variant: str
    start: str | None
    gradient: str | None
    beta: float
    rmse: float
    nll: float
    exact_nll: float | None
    regret: float | None
    regret_ci95: float | None
    regret_error: float | None
    reference: str | None
    coverage90: float
    noise: float
    rate: float
    distortion: float
    neg_elbo: float
    selected: bool = False


def regression_variants(options: SibOptions) -> list[Variant]:
    """Each β with the exact posterior where there is one, and with K steps and with none of SIB's guide."""
    name = "linear" if Problem(options.data).is_linear else "network"
    exact = [Variant(CONJUGATE, name, "matrix", beta, 0) for beta in options.betas] if name == "linear" else []
    swept = itertools.product(options.betas, dict.fromkeys((options.steps, 0)))
    return exact + [Variant("sib", name, "gaussian", beta, k, reference=k != options.steps) for beta, k in swept]


def check_regression(options: SibOptions) -> None:
    """Refuse what means nothing for regression, rather than leave it out of account.

    Raises:
        UserError: in one line.
    """
    changed = [field for field in fields(options) if field.name in USELESS and getattr(options, field.name) != field.default]
    if changed:
        values = {field.name: getattr(options, field.name) for field in changed}
        given = ", ".join(f"`{n}={str(v).lower() if isinstance(v, bool) else plain(v)}`" for n, v in values.items())
        raise UserError(f"regression (`data={options.data}`) has no use for {given}: leave it out")
    if options.device == "cuda":
        raise UserError("regression runs on the CPU: leave out `device=cuda`")
    if not all(options.betas):
        raise UserError("`beta=0` has no posterior: regression needs a positive one")
    if options.posterior != "gaussian":
        raise UserError(f"`posterior={options.posterior}` has no variance: regression needs gaussian")
    if options.initialisation == "queries":
        raise UserError("`initialisation=queries` is for tasks without a support: regression takes support or learned")
    if options.prior != "gaussian":
        raise UserError(f"`prior={options.prior}` has no exact posterior: regression needs gaussian")


def build_fits(options: SibOptions, model: EmpiricalBayesModel) -> dict[Variant, RateDistortionModule]:
    """Everything a run trains, untrained; all share the model."""
    problem, chosen = Problem(options.data), settings(GuideSettings, options)
    fits = {}
    for variant in regression_variants(options):
        beta = variant.beta
        assert beta is not None
        if variant.method == CONJUGATE:
            fits[variant] = tempered(model, beta)
        else:
            with seeded(options.seed):
                fits[variant] = training_objective(beta, model, build_guide(problem, model, chosen, variant))
    return fits


def fit_model(options: SibOptions) -> EmpiricalBayesModel:
    """The model, with prior and noise learned where they are not known."""
    problem = Problem(options.data)
    model = problem.model()
    if problem.is_linear:
        fit_evidence(model, problem, options.queries, settings(MetaSchedule, options))
    return model


def fit_all(options: SibOptions, run: RunFolder) -> Fits:
    """The model, then each guide."""
    problem, schedule = Problem(options.data), settings(MetaSchedule, options)
    with run.timed("evidence"):
        model = fit_model(options)
    fits = build_fits(options, model)
    for variant, objective in fits.items():
        if variant.method != CONJUGATE:
            print(f"training {variant.name} ...")
            with run.timed(variant.name):
                fit_guide(objective, problem, options.queries, schedule)
        save_tensors(run.checkpoints / f"{variant.name}.safetensors", objective.state_dict(), {})
    return fits


def load_fits(options: SibOptions, run: RunFolder) -> Fits:
    """What a finished run has trained.

    Raises:
        UserError: a checkpoint is missing, damaged or of another configuration.
    """
    fits = build_fits(options, Problem(options.data).model())
    for variant, objective in fits.items():
        load_state(objective, run.checkpoints / f"{variant.name}.safetensors")
    return fits


def scored_tasks(options: SibOptions, stream: int) -> Episode:
    """The tasks of a stream, the same for every guide."""
    seed = stream_seed(options.seed, options.tasks, stream)
    return Problem(options.data).tasks(options.test_tasks, queries=options.queries, seed=seed)


@torch.no_grad()
def log_predictive(
    objective: RateDistortionModule, episode: Episode, *, num_samples: int = DRAWN, at_once: int = TASKS_AT_ONCE
) -> Tensor:
    """log q(y given x, support) of the queries, nats, each by itself: ``[tasks, query]``; exact where ŷ is linear, else from
    draws, ``at_once`` tasks at a time."""
    assert episode.query_y is not None
    model, guide = objective.model, objective.guide
    if isinstance(model.predictor, LinearPredictor):
        fn = trace_guide(guide, episode, 1).nodes["weights"]["fn"]
        noise = model.likelihood.log_noise.exp()
        return linear_log_predictive(*posterior_moments(fn), episode.query_x, episode.query_y, noise)
    parts = []
    for start in range(0, len(episode.query_x), at_once):
        part = episode.tasks(slice(start, start + at_once))
        with seeded(0, start):  # independent draws for each task, so that their errors average out
            drawn = trace_guide(guide, part, num_samples)
        parts.append(mixture_log_density(labels_of(trace_model(model, drawn, part, num_samples)).log_prob(part.query_y)))
    return torch.cat(parts)


@torch.no_grad()
def score_regression(
    objective: RateDistortionModule,
    options: SibOptions,
    stream: int,
    *,
    variant: Variant | None = None,
    reference: Reference | None = None,
) -> RegressionRecord:
    """The record of one posterior on fresh tasks of a stream.

    Args:
        variant: what it is; the exact posterior when not given.
        reference: of these tasks, or of the first of them.
    """
    episode = scored_tasks(options, stream)
    assert episode.query_y is not None
    kind = variant or Variant(CONJUGATE, "linear", "matrix", objective.elbo.beta, 0)
    unrolled = kind.method != CONJUGATE
    scores = predictive_scores(objective, episode)
    logs = log_predictive(objective, episode)
    against = None if reference is None else regret(reference.log_predictive, logs[: reference.tasks])
    return RegressionRecord(
        split="val" if stream == VALIDATION else "test",
        steps=kind.steps,
        shot=SUPPORT,
        queries=options.queries,
        episodes=options.test_tasks,
        method=kind.method,
        variant=kind.name,
        start=options.initialisation if unrolled else None,
        gradient=options.gradient if unrolled else None,
        beta=objective.elbo.beta,
        nll=float(-logs.mean()),
        exact_nll=exact_nll(episode) if options.data == "linear" else None if reference is None else reference.exact_nll,
        regret=None if against is None else against.mean,
        regret_ci95=None if against is None else against.ci95,
        regret_error=None if against is None else against.error,
        reference=None if reference is None else reference.name,
        **scores,  # type: ignore[arg-type]
    )


@torch.no_grad()
def predictive_scores(objective: RateDistortionModule, episode: Episode) -> dict[str, float]:
    """``rmse``, ``coverage90``, ``noise``, ``rate``, ``distortion`` and ``neg_elbo``, as in :class:`RegressionRecord`."""
    noise = float(objective.model.likelihood.log_noise.exp())
    errors, levels, rates, distortions = [], [], [], []
    for start in range(0, len(episode.query_x), TASKS_AT_ONCE):
        part = episode.tasks(slice(start, start + TASKS_AT_ONCE))
        assert part.query_y is not None
        own = mix_seed(0, start)
        predicted = predictive(objective.model, objective.guide, part, num_samples=DRAWN, seed=own, batch=TASKS_AT_ONCE)
        assert predicted.rate is not None
        errors.append(predicted.labels.mean.mean(0) - part.query_y)
        levels.append(distribution_level(predicted.labels, part.query_y))  # of the mixture over draws
        rates.append(predicted.rate)
        distortions.append(predicted.distortion(part.query_y))
    rate, distortion = float(torch.cat(rates).mean()), float(torch.cat(distortions).mean())
    return {
        "rmse": float(torch.cat(errors).square().mean().sqrt()),
        "coverage90": central_coverage(torch.cat(levels))[0.9],
        "noise": noise,
        "rate": rate,
        "distortion": distortion,
        "neg_elbo": distortion + rate,
    }


def regret_cell(record: RegressionRecord) -> str:
    """Regret with its interval."""
    return "-" if record.regret is None else f"{record.regret:.3f} ± {record.regret_ci95:.3f}"


COLUMNS = (
    Column("", lambda r: "*" if r.selected else " ", left=True),
    Column("posterior", lambda r: r.method, left=True),
    Column("β", lambda r: number(r.beta, "g")),
    Column("K", lambda r: "-" if r.method == CONJUGATE else str(r.steps)),
    Column("RMSE", lambda r: number(r.rmse)),
    Column("NLL", lambda r: number(r.nll)),
    Column("exact NLL", lambda r: number(r.exact_nll)),
    Column("regret", regret_cell),
    Column("in 90 %", lambda r: number(r.coverage90, ".1f", factor=100)),
    Column("noise", lambda r: number(r.noise)),
    Column("rate", lambda r: number(r.rate, ".2f")),
    Column("distortion", lambda r: number(r.distortion, ".2f")),
)


class RegressionStudy(Study[SibOptions, Problem, Fits]):
    """A run of ``svi_sib`` on regression data: learn prior and noise, train SIB's guide, choose on validation tasks."""

    command = "svi_sib"
    resumes = False

    def load(self) -> Problem:
        return Problem(self.options.data)

    def check(self, data: Problem) -> None:
        check_regression(self.options)

    def fit(self, data: Problem, run: RunFolder) -> Fits:
        return fit_all(self.options, run)

    def evaluate(self, data: Problem, fitted: Fits, run: RunFolder) -> Sequence[RegressionRecord]:
        model, options = next(iter(fitted.values())).model, self.options
        with run.timed("reference"):
            reference = reference_for(data, model, scored_tasks(options, TEST), run.path.parent)
        scored = ((stream, item) for stream in (VALIDATION, TEST) for item in fitted.items())
        return [
            score_regression(fit, options, stream, variant=variant, reference=reference if stream == TEST else None)
            for stream, (variant, fit) in scored
        ]

    def choose(self, records: Sequence[RegressionRecord]) -> Sequence[RegressionRecord]:
        best = min((record for record in records if record.split == "val"), key=lambda record: record.nll)
        return [replace(record, selected=record.variant == best.variant) for record in records]

    def save(self, data: Problem, fitted: Fits, records: Sequence[RegressionRecord], run: RunFolder) -> None:
        """ArviZ data of eight test tasks under every posterior."""
        episode = scored_tasks(self.options, TEST).tasks(slice(8))
        chosen = next(record.variant for record in records if record.selected)

        def content(variant: Variant, objective: RateDistortionModule) -> Any:
            known = {"command": self.command, "method": variant.method, "steps": variant.steps, "beta": objective.elbo.beta}
            known |= {"dataset": self.options.data, "seed": self.options.seed}
            posterior = infer(objective.model, objective.guide, episode, **known)
            return posterior.to_arviz(episode.query_y, num_samples=SAVED_DRAWS)

        made = {variant.name: partial(content, variant, objective) for variant, objective in fitted.items()}
        save_posteriors(made, chosen, run)

    def figures(self, data: Problem, fitted: Fits, records: Sequence[RegressionRecord], run: RunFolder) -> Figures:
        return {}

    def report(self, data: Problem, records: Sequence[RegressionRecord]) -> str:
        options, tested = self.options, [record for record in records if record.split == "test"]
        title = f"{options.data}, {SUPPORT} support points, {options.test_tasks} test tasks; "
        title += f"K steps from the {options.initialisation} start, {options.gradient} gradient"
        notes = "* chosen on validation tasks; NLL and regret in nats per query, rate and distortion in nats per task;\n"
        if data.is_linear:
            notes += f"conjugate: the exact posterior of the learned model; the true noise is {data.noise:g}"
        else:
            notes += "prior and noise are the true ones"
        first = tested[0]
        if first.reference == EXACT_BAYES:
            notes += "\nregret: against exact Bayes under the law that tasks are drawn from"
        elif first.reference:
            notes += f"\nregret: against {first.reference} on the same model, whose own error is ± {first.regret_error:.3f}"
        return f"{title}\n{format_table(tested, COLUMNS)}\n\n{notes}"
