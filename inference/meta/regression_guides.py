"""Posteriors of regression tasks: exact Bayes where it is known, and SIB's guide with K steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.episodes import Episode
from data.seeding import mix_seed, seeded
from guides.tasks.conjugate import ConjugateGuide
from guides.tasks.gradient_networks import ExactGradient, GradientNetwork, MLPGradient, ResidualGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart, LinearisedStart, RidgeStart, Start
from guides.tasks.unrolled import Evidence, UnrolledGuide
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.meta.regression_tasks import Problem
from inference.meta.settings import GuideSettings, MetaSchedule
from inference.meta.training import DRAWS, TASKS
from inference.meta.variants import Variant
from inference.runs.training import check_finite, stop_if_not_finite
from models.distributions.matrix import MatrixNormal
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.priors import GaussianPrior

CONJUGATE = "conjugate"
PARTICLES = 4  # posterior draws per task and training step
FASTER = 6  # than a classifier's guide: there are few parameters, and the loss is smooth
CLIP = 100.0  # of the gradient's norm, nats per task: a task on which steps run away does not throw the others
CAUTION = 0.3  # initial step size, in units of the stable one of the steepest task


def build_regression(name: str, beta: float) -> RateDistortionModule:
    """Model of a linear problem and, as guide, the exact posterior given the support, tempered by β."""
    model = Problem(name).model()
    return tempered(model, beta)


def tempered(model: EmpiricalBayesModel, beta: float) -> RateDistortionModule:
    """A linear model with its exact posterior given the support, of weight β on the rate."""
    assert isinstance(model.prior, GaussianPrior)
    assert isinstance(model.likelihood, GaussianLikelihood)
    return RateDistortionELBO(beta=beta)(model, ConjugateGuide(model.prior, model.likelihood, beta=beta))


def build_guide(problem: Problem, model: EmpiricalBayesModel, settings: GuideSettings, variant: Variant) -> UnrolledGuide:
    """SIB's guide: a start from the support, then K steps of synthetic gradients.

    The gradient is taken on the support, whose labels are known, by the network of residuals or exactly; the paper's network
    has no labels and takes its steps on the queries.
    """
    beta = variant.beta if variant.beta is not None else 0.0
    on = Evidence.QUERIES if settings.gradient == "mlp" else Evidence.SUPPORT
    guide = UnrolledGuide(
        model.prior,
        model.predictor,
        build_start(problem, model, settings),
        build_gradient(model, settings),
        build_rule(problem, model, settings, variant.steps),
        steps=variant.steps,
        on=on,
        beta=beta,
        inner_samples=settings.inner_samples,
    )
    return guide.double()


def build_start(problem: Problem, model: EmpiricalBayesModel, settings: GuideSettings) -> Start:
    """λ: ridge regression on the support, of the linearised network where ŷ is not linear, with a prior and a noise of its own
    that are at first the model's; or one learned posterior for all tasks, at first the prior."""
    loc, log_scale = (h.detach().clone() for h in model.prior.hyperparameters())
    if settings.initialisation == "learned":
        return LearnedStart(loc[None], log_scale.exp())
    if problem.is_linear:
        return RidgeStart(loc, log_scale.exp(), model_noise(model))
    return LinearisedStart(model.predictor, loc, log_scale.exp(), model_noise(model))


def build_gradient(model: EmpiricalBayesModel, settings: GuideSettings) -> GradientNetwork:
    """ξ of the residuals, the paper's ξ of the outputs, or the exact gradient of the model's likelihood."""
    if settings.gradient == "exact":
        return ExactGradient(model.likelihood)
    return MLPGradient(1) if settings.gradient == "mlp" else ResidualGradient()


def build_rule(problem: Problem, model: EmpiricalBayesModel, settings: GuideSettings, steps: int) -> GradientStep:
    """The gradient step with a learned size for each step and weight, which starts well below what the steepest tasks bear."""
    steepness = output_steepness(problem, model)
    weight = model_noise(model) ** -2 if settings.gradient == "exact" else 1.0
    size = CAUTION / (steepness * weight)
    return GradientStep(steps, problem.num_weights, size=size, learned=settings.learn_inner_lr, per_feature=True)


def model_noise(model: EmpiricalBayesModel) -> float:
    """Standard deviation of the model's likelihood, learned or known."""
    assert isinstance(model.likelihood, GaussianLikelihood)
    return float(model.likelihood.log_noise.detach().exp())


def output_steepness(problem: Problem, model: EmpiricalBayesModel) -> float:
    """The largest eigenvalue of Σ_i ∂ŷ_i/∂w ∂ŷ_i/∂wᵀ over supports, at the prior's mean: of 200 tasks the largest."""
    episode = problem.tasks(200, queries=1, seed=0)
    loc, log_scale = (h.detach() for h in model.prior.hyperparameters())
    start = LinearisedStart(model.predictor, loc, log_scale.exp(), 1.0).double()
    design, _ = start.design(episode.support_x)
    return float(torch.linalg.matrix_norm(design.detach(), 2).square().max())


def fit_evidence(model: EmpiricalBayesModel, problem: Problem, queries: int, schedule: MetaSchedule) -> None:
    """Learn prior and noise of a linear problem under its exact posterior.

    The support sets score themselves, so that at β = 1 the objective is exactly −log evidence, and its minimum is type-II
    maximum likelihood. Below β = 1 there is no minimum where features outnumber points: the noise would shrink to nothing.
    """
    fit_regression(tempered(model, 1.0), problem, queries, schedule, learning_rate=FASTER * schedule.learning_rate)


def fit_guide(objective: RateDistortionModule, problem: Problem, queries: int, schedule: MetaSchedule) -> None:
    """Learn a guide's own parameters; prior and noise stay as they are, so that guides differ by the posterior alone."""
    model = objective.model
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        fit_regression(objective, problem, queries, schedule, learning_rate=FASTER * schedule.learning_rate)
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def fit_regression(
    objective: RateDistortionModule, problem: Problem, queries: int, schedule: MetaSchedule, *, learning_rate: float
) -> None:
    """Minimise distortion + β · rate over fresh tasks by Adam with a cosine decay from ``learning_rate``; deterministic for a
    seed.

    What is scored is the support that the posterior is conditioned on: the minimum over all q is the posterior p(w given
    support). A guide that takes its steps on the queries is trained on their labels instead, as in the paper.

    Raises:
        UserError: the loss is not finite.
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    on_queries = getattr(objective.guide, "on", None) is Evidence.QUERIES

    def loss(episode: Episode) -> Tensor:
        return objective(*(episode if on_queries else episode.on_support()))

    descend(loss, partial(problem.tasks, queries=queries), torch.optim.Adam(parameters, learning_rate), schedule)


def descend(
    loss_of: Callable[[Episode], Tensor],
    draw: Callable[..., Episode],
    optimizer: torch.optim.Optimizer,
    schedule: MetaSchedule,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Take an ``optimizer``'s steps over fresh tasks, with a cosine decay; deterministic for a seed.

    Args:
        loss_of: of a batch of tasks, nats.
        draw: from a number, and a ``seed``, to tasks.
        schedule: how many tasks, how many of them at once, and the seed.
        watch: called with the number of each step before it.

    Raises:
        UserError: the loss is not finite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    steps = max(1, schedule.tasks // schedule.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if watch is not None:
            watch(step)
        episode = draw(schedule.batch, seed=mix_seed(schedule.seed, step, TASKS))
        with seeded(schedule.seed, step, DRAWS), stop_if_not_finite(step, kept=False):
            loss = loss_of(episode) / schedule.batch
            check_finite(loss, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        cosine.step()


def training_objective(beta: float, model: EmpiricalBayesModel, guide: UnrolledGuide) -> RateDistortionModule:
    """The objective of a guide with several draws per task."""
    elbo = RateDistortionELBO(beta=beta, num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=2)
    return elbo(model, guide)


def posterior_moments(fn: Any) -> tuple[Tensor, Tensor]:
    """Mean ``[tasks, D]`` and covariance ``[tasks, D, D]`` of a Gaussian site ``weights`` of one row and one draw."""
    if isinstance(fn, MatrixNormal):
        return fn.flat.mean[0, :, 0], fn.flat.covariance_matrix[0, :, 0]
    return fn.mean[0, :, 0, 0], torch.diag_embed(fn.variance[0, :, 0, 0])
