"""Records of meta-learners on regression tasks: errors, densities, regret, what they depend on and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.distributions import validation_enabled
from torch import Tensor, nn

from data.curves import told_alike
from data.episodes import Episode
from data.regression import sinusoid_log_predictive
from data.seeding import mix_seed
from inference.diagnostics.calibration import central_coverage, distribution_level
from inference.diagnostics.dependence import PacBayesBound, is_transductive, support_information
from inference.diagnostics.regret import linear_log_predictive, regret
from inference.evaluation.predictive import Predictive, predictive, trace_guide
from inference.meta import comparison
from inference.meta.comparison import numbers_adapted, points_adapted, share_of_runaways
from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_guides import posterior_moments
from inference.meta.regression_reference import EXACT_BAYES, Reference, reference_for
from inference.meta.regression_tasks import MEMORISABLE, NOISE, SINUSOIDS_AT_ONCE, VALIDATION, Problem
from inference.meta.training import TASKS
from inference.meta.variants import Variant
from inference.runs.files import finite
from models.distributions.support_gaussian import SupportGaussian
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor

AT_ONCE = 20  # tasks; so many draws of a network's weights are memory
BOUNDED_TASKS = 200  # training tasks whose bounded loss is taken, of one batch
DEPENDENT_TASKS, TIMED_TASKS, TIMED_AT_ONCE, TURNS = 40, 100, 50, 3


@dataclass(frozen=True)
class MetaRegressionRecord:
    """One row of ``metrics.json``; what is not finite, for steps ran away, is ``None``.

    Attributes:
        split, shot, queries, episodes: the tasks.
        steps: K; 0 where nothing is unrolled.
        method, given: its name, and its own options that are not as usual.
        variant: its name, with all that tells it from others.
        beta: weight of the rate; ``None`` without one.
        mse, mse_median: squared error of the predictive mean: mean and median over tasks, of each the mean over queries, whose
            targets have noise.
        rmse: √ of ``mse``, in the target's unit.
        nll: −log predictive density, nats per query, each query by itself.
        exact_nll: the same of exact Bayes under the law that tasks are drawn from; ``None`` where it is not known.
        regret, regret_ci95: mean log p*(y given x, support) − log q(y given x, support), nats per query, and the half-width
            of its 95 % interval over tasks; ``None`` where there is no reference.
        regret_error: 95 % half-width of the reference's own error.
        reference: ``exact Bayes`` or ``NUTS``, see :mod:`inference.meta.regression_reference`; ``None`` where there is none.
        coverage90: share of queries in the central 90 % predictive interval.
        noise: standard deviation that the model has learned; ``None`` where it is predicted for each query.
        rate, distortion: nats per task; no rate of a point, or where nothing is latent.
        shared_rate: KL(q ‖ p) of what all tasks share, nats, for all of them together; ``None`` where that is a point, or there
            is nothing of the kind.
        bounded_loss: mean of min(1, (y − ŷ)²) over queries of training tasks and draws of what all tasks share, where there is
            a ``shared_rate``.
        pac_bayes: of which :class:`~inference.diagnostics.dependence.PacBayesBound` says that it is this much at most on new
            tasks that are drawn as the training tasks were, in 95 of 100 sets of these; vacuous from 1 on.
        support_information: I(ŷ; D given x), nats per query; see
            :func:`~inference.diagnostics.dependence.support_information`. Tasks that can be memorised tell all the same.
        transductive: whether another query changes a prediction.
        diverged: share of tasks whose squared error is not finite, or beyond 1000 times the median.
        adapt_ms: from a task's points to its predictions, milliseconds a task, fifty at once.
        tasks_per_second: in training, of a run that was not interrupted; ``None`` where nothing was trained.
        adapted: numbers that are a task's own.
        shared: learned numbers that all tasks share.
        selected: whether validation tasks chose it.
    """

    split: str
    steps: int
    shot: int
    queries: int
    episodes: int
    method: str
    given: str
    variant: str
    beta: float | None
    mse: float | None
    mse_median: float | None
    rmse: float | None
    nll: float | None
    exact_nll: float | None
    regret: float | None
    regret_ci95: float | None
    regret_error: float | None
    reference: str | None
    coverage90: float
    noise: float | None
    rate: float | None
    distortion: float | None
    shared_rate: float | None
    bounded_loss: float | None
    pac_bayes: float | None
    support_information: float | None
    transductive: bool
    diverged: float
    adapt_ms: float
    tasks_per_second: float | None
    adapted: int
    shared: int
    selected: bool = False


def exact_reference(problem: Problem, episode: Episode, folder: Path) -> Reference | None:
    """The right posterior of tasks with the inputs themselves: exact Bayes, or NUTS on the first of them; ``None`` of images,
    whose law no formula has.

    Args:
        folder: where NUTS's draws are kept, so that runs beside each other share them.
    """
    if problem.image_shape is not None:
        return None
    if problem.name != "sinusoids":
        return reference_for(problem, problem.model(), episode, folder)
    parts = []
    for part in split(episode, SINUSOIDS_AT_ONCE):
        support_x, query_x = part.support_x[..., 0], part.query_x[..., 0]
        assert part.query_y is not None
        parts.append(sinusoid_log_predictive(support_x, part.support_y, query_x, part.query_y, NOISE["sinusoids"]))
    return Reference(torch.cat(parts), EXACT_BAYES)


def split(episode: Episode, size: int) -> Iterator[Episode]:
    """The tasks, so many at a time, the ``size``."""
    for start in range(0, len(episode.query_x), size):
        yield episode.tasks(slice(start, start + size))


@torch.no_grad()
def said(fit: Fit, episode: Episode, *, num_samples: int | None = None) -> Iterator[tuple[Episode, Predictive]]:
    """Tasks as the fit sees them, some at a time, and what it predicts of their queries by so many draws: the fit's own number
    of them when not given."""
    for number, part in enumerate(split(episode, AT_ONCE)):
        seen = fit.embed(part)
        seed = mix_seed(0, number)  # independent draws for each task, so that their errors average out
        yield seen, predictive(fit.model, fit.guide, seen, num_samples=num_samples or fit.draws, seed=seed, batch=AT_ONCE)


@torch.no_grad()
def log_density(fit: Fit, seen: Episode, predicted: Predictive) -> Tensor:
    """log q(y given x, support) of the queries, nats, each by itself, ``[tasks, query]``: exact where ŷ is linear, else of the
    draws of what was ``predicted``; ``seen`` is the tasks as the fit sees them."""
    assert seen.query_y is not None
    model = fit.model
    direct = isinstance(model, EmpiricalBayesModel) and not hasattr(fit.guide, "particles")  # the site's weights predict
    if not direct or not isinstance(model.predictor, LinearPredictor):
        return predicted.log_predictive(seen.query_y).double()
    fn = trace_guide(fit.guide, seen, 1).nodes["weights"]["fn"]
    mean, covariance = (part.double() for part in moments(fn))
    noise = model.likelihood.log_noise.exp().double()
    return linear_log_predictive(mean, covariance, seen.query_x.double(), seen.query_y.double(), noise)


def moments(fn: Any) -> tuple[Tensor, Tensor]:
    """Mean ``[tasks, D]`` and covariance ``[tasks, D, D]`` of a site ``weights`` of one row and one draw."""
    if not isinstance(fn, SupportGaussian):
        return posterior_moments(fn)
    factor, scales = fn.white.factor[..., 0, 0, :, :].double(), fn.scales.flatten().double()  # one block, of all tasks alike
    white = torch.linalg.inv(torch.eye(factor.shape[-1], dtype=factor.dtype) + factor.mT @ factor)
    return fn.mean[0, :, 0, 0], scales[:, None] * white * scales


def score(
    fit: Fit,
    variant: Variant,
    setup: Setup,
    episode: Episode,
    stream: int,
    *,
    reference: Reference | None = None,
    seconds: float | None = None,
) -> MetaRegressionRecord:
    """The record of a variant on the tasks of an ``episode``, those of a ``stream``.

    Args:
        reference: of these tasks, or of the first of them.
        seconds: that its training took.
    """
    with validation_enabled(False):  # of a task whose steps ran away nothing is finite, and the others are to be scored
        scores, logs = measure(fit, episode)
        alike = told_alike(episode) if setup.problem.name == MEMORISABLE else episode
        scores |= dependence(fit, alike) | cost(fit, episode) | generalisation(fit, setup)
    against = None if reference is None else regret(reference.log_predictive, logs[: reference.tasks])
    learned = {id(p): p.numel() for p in fit.parameters() if p.requires_grad}
    return MetaRegressionRecord(
        split="val" if stream == VALIDATION else "test",
        steps=variant.steps,
        shot=setup.problem.shot,
        queries=setup.queries,
        episodes=len(episode.query_x),
        method=variant.method,
        given=variant.given,
        variant=variant.name,
        beta=variant.beta,
        nll=finite(float(-logs.mean())),
        exact_nll=None if reference is None else reference.exact_nll,
        regret=None if against is None else finite(against.mean),
        regret_ci95=None if against is None else finite(against.ci95),
        regret_error=None if against is None else against.error,
        reference=None if reference is None else reference.name,
        noise=noise_of(fit.model),
        tasks_per_second=setup.schedule.tasks / seconds if seconds and learned else None,
        shared=sum(learned.values()),
        **scores,
    )


def measure(fit: Fit, episode: Episode) -> tuple[dict[str, Any], Tensor]:
    """``mse``, ``mse_median``, ``rmse``, ``coverage90``, ``rate``, ``distortion`` and ``diverged``, see
    :class:`MetaRegressionRecord`, and log densities of the queries, nats, ``[tasks, query]``."""
    errors, levels, rates, distortions, logs = [], [], [], [], []
    for seen, predicted in said(fit, episode):
        assert seen.query_y is not None
        errors.append((predicted.labels.mean.mean(0) - seen.query_y).double().square().mean(-1))
        levels.append(distribution_level(predicted.labels, seen.query_y))  # of the mixture over draws
        rates += [] if predicted.rate is None else [predicted.rate]
        distortions.append(predicted.distortion(seen.query_y))
        logs.append(log_density(fit, seen, predicted))
    squared = torch.cat(errors)
    return {
        "mse": finite(float(squared.mean())),
        "mse_median": finite(float(squared.nan_to_num(torch.inf).median())),
        "rmse": finite(float(squared.mean().sqrt())),
        "coverage90": central_coverage(torch.cat(levels))[0.9],
        "rate": finite(float(torch.cat(rates).mean())) if rates else None,
        "distortion": finite(float(torch.cat(distortions).mean())),
        "diverged": share_of_runaways(squared),
    }, torch.cat(logs)


def shared_rate(fit: Fit, episode: Episode) -> float | None:
    """Σ KL(q ‖ p) of latent sites that all tasks share, nats; ``None`` where there are none, or one is a point."""
    return comparison.shared_rate(fit.model, fit.guide, fit.embed(episode.tasks(slice(1))))


@torch.no_grad()
def generalisation(fit: Fit, setup: Setup) -> dict[str, float | None]:
    """``shared_rate``, ``bounded_loss`` and ``pac_bayes``, see :class:`MetaRegressionRecord`; the loss is that of the first
    training tasks."""
    schedule = setup.schedule
    episode = setup.draw(min(schedule.batch, BOUNDED_TASKS), mix_seed(schedule.seed, 0, TASKS))
    rate, losses = shared_rate(fit, episode), []
    if rate is None or not math.isfinite(rate):
        return dict.fromkeys(("shared_rate", "bounded_loss", "pac_bayes"))
    for seen, predicted in said(fit, episode):
        assert seen.query_y is not None
        losses.append((predicted.labels.mean - seen.query_y).square().clamp_max(1.0).nan_to_num(1.0).mean((0, 2)))
    loss = float(torch.cat(losses).mean())
    return {"shared_rate": rate, "bounded_loss": loss, "pac_bayes": bound_of(loss, rate, setup).value}


def bound_of(loss: float, rate: float, setup: Setup) -> PacBayesBound:
    """The bound on new tasks of a bounded ``loss`` of training tasks and the ``rate`` of what they share."""
    return PacBayesBound(loss, rate, tasks=max(2, setup.num_tasks), queries=max(2, setup.queries))


def noise_of(model: nn.Module) -> float | None:
    """Standard deviation of a Gaussian likelihood; ``None`` of another."""
    likelihood = model.likelihood
    return float(likelihood.log_noise.detach().exp()) if isinstance(likelihood, GaussianLikelihood) else None


def dependence(fit: Fit, episode: Episode) -> dict[str, Any]:
    """``support_information`` and ``transductive`` on the first tasks, see :class:`MetaRegressionRecord`."""
    about = fit.model, fit.guide, fit.embed(episode.tasks(slice(DEPENDENT_TASKS)))
    supports = min(16, len(about[2].query_x) - 1)
    information = support_information(*about, exclusive=False, supports=supports, num_samples=8)
    return {"support_information": finite(float(information.mean())), "transductive": is_transductive(*about)}


@torch.no_grad()
def cost(fit: Fit, episode: Episode) -> dict[str, Any]:
    """``adapt_ms``, the best of three turns, and ``adapted``, see :class:`MetaRegressionRecord`."""
    timed, taken = episode.tasks(slice(TIMED_TASKS)), []
    for _ in range(TURNS):
        begun = time.perf_counter()
        for part in split(timed, TIMED_AT_ONCE):
            predictive(fit.model, fit.guide, fit.embed(part))
        taken.append(time.perf_counter() - begun)
    adapted = numbers_adapted(fit.guide, fit.embed(episode.tasks(slice(2)))) + points_adapted(fit.model)
    return {"adapt_ms": 1000 * min(taken) / len(timed.query_x), "adapted": adapted}
