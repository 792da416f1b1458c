"""Few-shot regression on the same hierarchy: ``--data linear`` and ``--data sinusoids``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from data.episodes import Episode
from data.errors import UserError
from data.regression import linear_posterior, linear_tasks, sinusoid_tasks
from data.seeding import mix_seed, seeded
from guides.tasks.conjugate import ConjugateGuide
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import predictive
from inference.evaluation.tables import Column, format_table, number
from inference.meta.options import SibOptions
from inference.meta.settings import MetaSchedule, settings
from inference.meta.training import DRAWS, TASKS
from inference.meta.variants import short
from inference.runs.folder import RunFolder
from inference.runs.study import Figures, Study
from inference.runs.tensors import save_tensors
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

LINEAR_PRIOR = (torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.7, 0.3, 1.2]))
NOISE = {"linear": 0.5, "sinusoids": 0.1}
SUPPORT = 10
DRAWN = 200  # posterior draws of the predictive distribution
SAVED_DRAWS = 1000  # of a saved posterior: so many that leave-one-out estimates are right to a few hundredths of a nat
VALIDATION, TEST = 0, 1  # streams of tasks


@dataclass(frozen=True)
class RegressionRecord:
    """One row of ``metrics.json``.

    Attributes:
        split, steps, shot, queries, episodes: the tasks; nothing is unrolled, so ``steps`` is 0.
        beta: weight of the rate.
        rmse: of the predictive mean, in the target's unit.
        nll: −log predictive density, nats per query, each query by itself.
        exact_nll: the same of exact Bayes under the true prior and noise; ``None`` where it is not known.
        coverage90: share of queries in the central 90 % predictive interval.
        noise: learned standard deviation; the true one is in :data:`NOISE`.
        rate, distortion, neg_elbo: nats per task; distortion is of the queries.
        selected: whether validation tasks chose this β.
    """

    split: str
    steps: int
    shot: int
    queries: int
    episodes: int
    beta: float
    rmse: float
    nll: float
    exact_nll: float | None
    coverage90: float
    noise: float
    rate: float
    distortion: float
    neg_elbo: float
    selected: bool = False


def regression_tasks(name: str, tasks: int, *, queries: int, seed: int) -> Episode:
    """A batch of ``linear`` or ``sinusoids`` tasks with ten support points, in double precision: the precision matrix of forty
    overlapping basis functions is nearly singular."""
    if name == "linear":
        episode = linear_tasks(tasks, queries, *LINEAR_PRIOR, noise=NOISE[name], seed=seed, support=SUPPORT)
    else:
        episode = sinusoid_tasks(tasks, support=SUPPORT, queries=queries, noise=NOISE[name], seed=seed)
    return episode.to(dtype=torch.float64)


def build_regression(num_features: int, beta: float) -> RateDistortionModule:
    """Gaussian prior and noise, both learned, a linear predictor, and as guide the exact posterior given the support, tempered
    by β."""
    prior, likelihood = GaussianPrior(torch.zeros(num_features), torch.ones(num_features)), GaussianLikelihood(1.0)
    model = EmpiricalBayesModel(prior, LinearPredictor(1.0, learned=False), likelihood)
    return RateDistortionELBO(beta=beta)(model.double(), ConjugateGuide(prior, likelihood, beta=beta))


def tempered(evidence: RateDistortionModule, beta: float) -> RateDistortionModule:
    """The same prior and noise with the posterior of another β."""
    model: EmpiricalBayesModel = evidence.model
    guide = ConjugateGuide(evidence.guide.prior, evidence.guide.likelihood, beta=beta)
    return RateDistortionELBO(beta=beta)(model, guide)


def fit_regression(objective: RateDistortionModule, name: str, queries: int, schedule: MetaSchedule) -> None:
    """Learn prior and noise by Adam with a cosine decay on fresh tasks; deterministic for a seed.

    The support sets score themselves, so that at β = 1 the objective is exactly −log evidence, and its minimum is type-II
    maximum likelihood. Below β = 1 there is no minimum where features outnumber points: the noise would shrink to nothing.
    """
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 10 * schedule.learning_rate)
    steps = max(1, schedule.tasks // schedule.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        seed = mix_seed(schedule.seed, step, TASKS)
        episode = regression_tasks(name, schedule.batch, queries=queries, seed=seed).on_support()
        with seeded(schedule.seed, step, DRAWS):
            loss = objective(*episode) / schedule.batch
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {float(loss)} at step {step}: lower `learning_rate`")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()


@torch.no_grad()
def score_regression(objective: RateDistortionModule, options: SibOptions, stream: int) -> RegressionRecord:
    """The record of one β on fresh tasks of a stream."""
    episode = scored_tasks(options, stream)
    assert episode.query_y is not None
    predicted = predictive(objective.model, objective.guide, episode, num_samples=DRAWN)
    assert predicted.rate is not None
    means = predicted.labels.mean
    noise = float(objective.model.likelihood.log_noise.exp())
    spread = (means.var(0) + noise**2).sqrt()
    error = means.mean(0) - episode.query_y
    rate, distortion = float(predicted.rate.mean()), float(predicted.distortion(episode.query_y).mean())
    return RegressionRecord(
        split="val" if stream == VALIDATION else "test",
        steps=0,
        shot=SUPPORT,
        queries=options.queries,
        episodes=options.test_tasks,
        beta=objective.elbo.beta,
        rmse=float(error.square().mean().sqrt()),
        nll=float(-predicted.log_predictive(episode.query_y).mean()),
        exact_nll=exact_nll(episode) if options.data == "linear" else None,
        coverage90=float((error.abs() < 1.645 * spread).float().mean()),
        noise=noise,
        rate=rate,
        distortion=distortion,
        neg_elbo=distortion + rate,
    )


def scored_tasks(options: SibOptions, stream: int) -> Episode:
    """The tasks of a stream, the same for every β."""
    seed = mix_seed(options.seed, options.tasks, 1, stream)
    return regression_tasks(options.data, options.test_tasks, queries=options.queries, seed=seed)


def exact_nll(episode: Episode) -> float:
    """Mean of −log p(y given x, support) of linear tasks under the true prior and noise, nats per query, each query by itself:
    no method can do better on average."""
    assert episode.query_y is not None
    noise = NOISE["linear"]
    loc, scale = (part.to(episode.support_x) for part in LINEAR_PRIOR)
    mean, covariance = linear_posterior(episode.support_x, episode.support_y, loc, scale, noise)
    predicted = (episode.query_x @ mean[..., None])[..., 0]
    variance = ((episode.query_x @ covariance) * episode.query_x).sum(-1) + noise**2
    return float(-torch.distributions.Normal(predicted, variance.sqrt()).log_prob(episode.query_y).mean())


COLUMNS = (
    Column("", lambda r: "*" if r.selected else " ", left=True),
    Column("β", lambda r: number(r.beta, "g")),
    Column("RMSE", lambda r: number(r.rmse)),
    Column("NLL", lambda r: number(r.nll)),
    Column("exact NLL", lambda r: number(r.exact_nll)),
    Column("in 90 %", lambda r: number(r.coverage90, ".1f", factor=100)),
    Column("noise", lambda r: number(r.noise)),
    Column("rate", lambda r: number(r.rate, ".2f")),
    Column("distortion", lambda r: number(r.distortion, ".2f")),
)


class RegressionStudy(Study[SibOptions, int, dict[float, RateDistortionModule]]):
    """A run of ``svi_sib`` on regression data: learn prior and noise, choose β on validation tasks."""

    command = "svi_sib"
    resumes = False

    def load(self) -> int:
        """The number of features."""
        return regression_tasks(self.options.data, 1, queries=1, seed=0).query_x.shape[-1]

    def check(self, data: int) -> None:
        if not all(self.options.betas):
            raise UserError("`beta=0` has no posterior: regression needs a positive one")

    def fit(self, data: int, run: RunFolder) -> dict[float, RateDistortionModule]:
        options = self.options
        evidence = build_regression(data, 1.0)
        with run.timed("fit"):
            fit_regression(evidence, options.data, options.queries, settings(MetaSchedule, options))
        save_tensors(run.checkpoints / "regression.safetensors", evidence.state_dict(), {})
        return {beta: tempered(evidence, beta) for beta in options.betas}

    def evaluate(self, data: int, fitted: dict[float, RateDistortionModule], run: RunFolder) -> Sequence[RegressionRecord]:
        return [score_regression(f, self.options, stream) for stream in (VALIDATION, TEST) for f in fitted.values()]

    def choose(self, records: Sequence[RegressionRecord]) -> Sequence[RegressionRecord]:
        best = min((record for record in records if record.split == "val"), key=lambda record: record.nll)
        return [replace(record, selected=record.beta == best.beta) for record in records]

    def save(
        self,
        data: int,
        fitted: dict[float, RateDistortionModule],
        records: Sequence[RegressionRecord],
        run: RunFolder,
    ) -> None:
        """ArviZ data of eight test tasks under every β."""
        episode = scored_tasks(self.options, TEST).tasks(slice(8))
        chosen = next(record.beta for record in records if record.selected)

        def content(objective: RateDistortionModule) -> Any:
            known = {"command": self.command, "method": "conjugate", "beta": objective.elbo.beta}
            known |= {"dataset": self.options.data, "seed": self.options.seed}
            posterior = infer(objective.model, objective.guide, episode, **known)
            return posterior.to_arviz(episode.query_y, num_samples=SAVED_DRAWS)

        made = {f"beta{short(beta)}": partial(content, objective) for beta, objective in fitted.items()}
        save_posteriors(made, f"beta{short(chosen)}", run)

    def figures(
        self,
        data: int,
        fitted: dict[float, RateDistortionModule],
        records: Sequence[RegressionRecord],
        run: RunFolder,
    ) -> Figures:
        return {}

    def report(self, data: int, records: Sequence[RegressionRecord]) -> str:
        options, tested = self.options, [record for record in records if record.split == "test"]
        title = f"{options.data}, {SUPPORT} support points, {options.test_tasks} test tasks"
        notes = "* chosen on validation tasks; NLL in nats per query, rate and distortion in nats per task;"
        return f"{title}\n{format_table(tested, COLUMNS)}\n\n{notes}\nthe true noise is {NOISE[options.data]:g}"
