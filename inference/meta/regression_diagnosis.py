"""All checks of a regression run: SBC, regret, amortization gap, PSIS k, coverage, NUTS."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data.episodes import Episode
from inference.diagnostics.amortization import (
    FULL_PARTICLES,
    FULL_STEP_SIZE,
    full_guide,
    optimise_tasks,
    prior_guide,
    psis_k,
    task_losses,
)
from inference.diagnostics.calibration import Calibration
from inference.diagnostics.findings import Finding
from inference.diagnostics.nuts import Moments, compare_moments
from inference.diagnostics.regret import regret
from inference.diagnostics.tasks import calibrate_tasks, predictive_levels
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.predictive import trace_guide
from inference.meta.options import SibOptions
from inference.meta.regression import load_fits, log_predictive, scored_tasks
from inference.meta.regression_guides import CONJUGATE
from inference.meta.regression_reference import Reference, reference_for
from inference.meta.regression_tasks import TEST, Problem
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder

DRAWN = 1000
SIMULATED = 3  # stream of tasks beside those of training, validation and test


def diagnose_regression(run: RunFolder, options: SibOptions, *, tasks: int, simulations: int) -> list[Finding]:
    """Every posterior of a run, and beside them Gaussians optimised on each task.

    Args:
        run: a finished run.
        options: its own.
        tasks: test tasks for everything but calibration; NUTS has its own number.
        simulations: of calibration.
    """
    problem, fits = Problem(options.data), load_fits(options, run)
    model = next(iter(fits.values())).model.requires_grad_(False)
    episode = scored_tasks(options, TEST)
    reference = reference_for(problem, model, episode, run.path.parent)
    episode = episode.tasks(slice(tasks if reference is None or reference.weights is None else reference.tasks))
    simulated = problem.tasks(simulations, queries=3, seed=options.seed + SIMULATED)
    print("optimising a Gaussian for each task ...")
    diagonal = optimise_tasks(model, prior_guide(model, episode), episode)
    full = optimise_tasks(model, full_guide(diagonal), episode, step_size=FULL_STEP_SIZE, particles=FULL_PARTICLES)
    free = {"per task, diagonal": diagonal, "per task, full covariance": full}
    best = task_losses(model, diagonal, episode, num_samples=DRAWN)
    findings = []
    for variant, objective in fits.items():
        name = label(variant, options)
        print(f"checking {name} ...")
        calibration = calibrate_tasks(model, objective.guide, simulated, seed=options.seed)
        findings.append(examine(name, objective, episode, reference, best, calibration))
        if variant.method == CONJUGATE and variant.beta == 1:
            control = calibrate_tasks(model, objective.guide, simulated, seed=options.seed, scale=0.5)
            findings.append(Finding(f"{name}, scales halved", control))
    return findings + [
        examine(name, RateDistortionELBO()(model, guide), episode, reference, best, None) for name, guide in free.items()
    ]


def label(variant: Variant, options: SibOptions) -> str:
    """The posterior's name for people."""
    beta = f", β = {variant.beta:g}" if len(options.betas) > 1 else ""
    return f"exact posterior{beta}" if variant.method == CONJUGATE else f"K = {variant.steps}{beta}"


def examine(
    name: str,
    objective: RateDistortionModule,
    episode: Episode,
    reference: Reference | None,
    best: torch.Tensor,
    calibration: Calibration | None,
) -> Finding:
    """One posterior under all checks."""
    model, guide = objective.model, objective.guide
    logs = log_predictive(objective, episode, num_samples=DRAWN, at_once=len(episode.query_x))
    found = None if reference is None else regret(reference.log_predictive[..., : len(logs), :], logs)
    return Finding(
        name,
        calibration=calibration,
        regret=found,
        reference=None if reference is None else reference.name,
        losses=task_losses(model, guide, episode, num_samples=DRAWN),
        best_losses=best,
        psis_k=psis_k(model, guide, episode, num_samples=DRAWN),
        levels=predictive_levels(model, guide, episode),
        moments=beside_nuts(guide, episode, reference),
    )


@torch.no_grad()
def beside_nuts(guide: nn.Module, episode: Episode, reference: Reference | None) -> Moments | None:
    """Moments of the weights beside NUTS's, where there are any."""
    if reference is None or reference.weights is None:
        return None
    site: Any = trace_guide(guide, episode, DRAWN).nodes["weights"]
    return compare_moments(site["value"][:, :, 0, 0], reference.weights)
