"""The amortization gap: a guide beside a q of its family that is optimised on each task itself; and PSIS k."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from data.episodes import Episode
from data.seeding import seeded
from guides.tasks.free import FreeGaussianGuide, FreeGuide, FullCovarianceGuide
from guides.tasks.unrolled import Evidence
from inference.elbo import RateDistortionELBO
from inference.evaluation.predictive import labels_of, predictive, trace_guide, trace_model

STEPS, PARTICLES, STEP_SIZE = 2000, 8, 0.05
EQUAL = 1e-6  # nats between log weights that are no difference
FULL_STEP_SIZE, FULL_PARTICLES = 0.005, 4  # all covariances are many parameters, which move together

Free = TypeVar("Free", bound=FreeGuide)


def optimise_tasks(
    model: nn.Module,
    guide: Free,
    episode: Episode,
    *,
    on: Evidence | str = Evidence.SUPPORT,
    beta: float = 1.0,
    steps: int = STEPS,
    particles: int = PARTICLES,
    step_size: float = STEP_SIZE,
    seed: int = 0,
) -> Free:
    """A Gaussian for each task, fitted to that task alone: all tasks in one batch, by Adam with a cosine decay.

    It minimises −E_q log p(labels given w) + β KL(q ‖ p) and changes nothing of the model.

    Args:
        model: with the latent site ``weights``, such as :class:`~models.tasks.model.EmpiricalBayesModel`.
        guide: where to begin, :func:`prior_guide` or :func:`full_guide`; it is changed.
        episode: the tasks.
        on: whose labels the posterior is given: the support's, or those of the queries, which it is then a reference for.
        beta: weight of the rate.
        steps, particles, step_size: of Adam; draws per step.
        seed: of the draws.

    Returns:
        The guide, for these tasks in this order.
    """
    data = given(episode, on)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        elbo = RateDistortionELBO(beta=beta, num_particles=particles, vectorize_particles=True, max_plate_nesting=2)
        objective = elbo(model, guide)
        optimizer = torch.optim.Adam(guide.parameters(), step_size, betas=(0.9, 0.99))
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with seeded(seed, device=data.query_x.device):
            for _ in range(steps):
                optimizer.zero_grad()
                objective(*data).backward()
                optimizer.step()
                cosine.step()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return guide.requires_grad_(False)


@torch.no_grad()
def prior_guide(model: nn.Module, episode: Episode) -> FreeGaussianGuide:
    """A free guide that starts at the prior's moments, narrower by half."""
    prior: Any = trace_model(model, None, episode, 1).nodes["weights"]["fn"]
    loc, scale = (moment.squeeze(0).squeeze(-3).expand(len(episode.query_x), -1, -1) for moment in (prior.mean, prior.stddev))
    return FreeGaussianGuide(loc, scale / 2)


@torch.no_grad()
def full_guide(diagonal: FreeGaussianGuide) -> FullCovarianceGuide:
    """A free guide with all covariances that starts at a diagonal one."""
    return FullCovarianceGuide(diagonal.loc, diagonal.log_scale.exp())


def given(episode: Episode, on: Evidence | str) -> Episode:
    """The tasks with the items as queries whose labels a posterior is given."""
    return episode.on_support() if Evidence(on) is Evidence.SUPPORT else episode


@torch.no_grad()
def task_losses(
    model: nn.Module,
    guide: nn.Module,
    episode: Episode,
    *,
    on: Evidence | str = Evidence.SUPPORT,
    beta: float = 1.0,
    num_samples: int = 1000,
) -> Tensor:
    """−E_q log p(labels given w) + β KL(q ‖ p) of each task, nats: ``[tasks]``; at β = 1 the negative ELBO.

    Diagonal Gaussians get the same noise, so that differences of two are finer than each of them; every task has its own, whose
    error an interval over tasks then holds.

    Args:
        on: whose labels are scored; see :func:`optimise_tasks`.
        num_samples: draws of each task's posterior.
    """
    data = given(episode, on)
    assert data.query_y is not None
    tasks = len(data.query_x)
    predicted = predictive(model, guide, episode, query_x=data.query_x, num_samples=num_samples, batch=tasks)
    distortion = predicted.distortion(data.query_y)
    return distortion if predicted.rate is None else distortion + beta * predicted.rate


@torch.no_grad()
def psis_k(
    model: nn.Module,
    guide: nn.Module,
    episode: Episode,
    *,
    on: Evidence | str = Evidence.SUPPORT,
    num_samples: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Pareto k of the importance weights p(w, labels) / q(w), task by task: ``[tasks]``.

    Below 0.7 the posterior is near enough that reweighting its draws would mend it; above, it misses parts of p(w given
    labels), or has too many dimensions for the test. A point has none. Source: Yao et al. 2018, "Yes, but did it work?"; by
    ArviZ.
    """
    with seeded(seed, device=episode.query_x.device):
        drawn = trace_guide(guide, episode, num_samples)
    data = given(episode, on)
    joint = trace_model(model, drawn, data, num_samples)
    log_q, log_p = (
        torch.stack([site_log_prob(trace, name, drawn) for name in drawn.stochastic_nodes]).sum(0)[..., 0]
        for trace in (drawn, joint)
    )
    return pareto_k(log_p + labels_of(joint).log_prob(data.query_y).sum(-1) - log_q)


def site_log_prob(trace: Trace, name: str, drawn: Trace) -> Tensor:
    """Log density of a latent site's draws under the distribution it has in ``trace``."""
    fn: Any = trace.nodes[name]["fn"]
    return fn.log_prob(drawn.nodes[name]["value"])


def pareto_k(log_weights: Tensor) -> Tensor:
    """Pareto k of log importance weights ``[draws, ...]``: ``[...]``; 0 where they are equal, as an exact posterior's are, for
    what differs is rounding. Source: Vehtari et al. 2024, by ArviZ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version, and warns of each large k
        import arviz

        k = torch.as_tensor(arviz.psislw(log_weights.movedim(0, -1).cpu().numpy())[1])
    spread = (log_weights.amax(0) - log_weights.amin(0)).cpu()
    return torch.where(spread < EQUAL, 0.0, k)
