"""All checks of a regression run: SBC, regret, amortization gap, PSIS k, coverage, NUTS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data.episodes import Episode
from data.seeding import mix_seed
from inference.diagnostics.amortization import (
    FULL_PARTICLES,
    FULL_STEP_SIZE,
    STEPS,
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
from inference.diagnostics.tasks import OUTPUTS, calibrate_tasks, predictive_levels
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.predictive import trace_guide
from inference.meta.options import SibOptions
from inference.meta.regression import load_fits, log_predictive, scored_tasks
from inference.meta.regression_guides import CONJUGATE, tempered
from inference.meta.regression_reference import Reference, reference_for
from inference.meta.regression_tasks import TEST, Problem
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder
from models.tasks.model import EmpiricalBayesModel

DRAWN = 1000
DIAGONAL, FULL = "per task, diagonal", "per task, full covariance"
SIMULATED = 3  # stream of tasks beside those of training, validation and test


def diagnose_regression(
    run: RunFolder, options: SibOptions, *, tasks: int, simulations: int, updates: int = STEPS
) -> list[Finding]:
    """Every posterior of a run, and beside them Gaussians optimised on each task.

    Args:
        run: a finished run.
        options: its own.
        tasks: test tasks for everything but calibration; NUTS has its own number.
        simulations: of calibration.
        updates: of each Gaussian that is optimised on a task.
    """
    fits = load_fits(options, run)
    model = next(iter(fits.values())).model
    episode = scored_tasks(options, TEST)
    reference = reference_for(Problem(options.data), model, episode, run.path.parent)
    episode = episode.tasks(slice(tasks if reference is None or reference.weights is None else reference.tasks))
    simulated = simulated_tasks(options, simulations)
    print("optimising a Gaussian for each task ...")
    free = per_task(model, episode, updates)
    best = task_losses(model, free[DIAGONAL].guide, episode, num_samples=DRAWN)
    findings = exact_findings(model, options, episode, reference, best, simulated)
    for variant, objective in fits.items():
        if variant.method == CONJUGATE and variant.beta == 1:
            continue  # the first row
        name = label(variant, options)
        print(f"checking {name} ...")
        calibration = calibrate_tasks(model, objective.guide, simulated, seed=options.seed)
        findings.append(examine(name, objective, episode, reference, best, calibration))
    return findings + [examine(name, objective, episode, reference, best, None) for name, objective in free.items()]


def simulated_tasks(options: SibOptions, simulations: int) -> Episode:
    """Inputs for calibration, of as many tasks as ``simulations``."""
    return Problem(options.data).tasks(simulations, queries=OUTPUTS, seed=mix_seed(options.seed, SIMULATED))


def per_task(model: EmpiricalBayesModel, episode: Episode, updates: int) -> dict[str, RateDistortionModule]:
    """Gaussians optimised on each task, in so many ``updates``: diagonal, and with all covariances."""
    diagonal = optimise_tasks(model, prior_guide(model, episode), episode, steps=updates)
    begin, size = full_guide(diagonal), FULL_STEP_SIZE
    full = optimise_tasks(model, begin, episode, steps=updates, step_size=size, particles=FULL_PARTICLES)
    return {name: RateDistortionELBO()(model, guide) for name, guide in ((DIAGONAL, diagonal), (FULL, full))}


def exact_findings(
    model: EmpiricalBayesModel,
    options: SibOptions,
    episode: Episode,
    reference: Reference | None,
    best: Tensor,
    simulated: Episode,
) -> list[Finding]:
    """The exact posterior where there is one, and as a control that must fail, the same with halved scales.

    ``best``: −ELBO of the best diagonal Gaussian of each task, nats, ``[tasks]``."""
    if not Problem(options.data).is_linear:
        return []
    exact = tempered(model, 1.0)
    right, halved = (calibrate_tasks(model, exact.guide, simulated, seed=options.seed, scale=s) for s in (1.0, 0.5))
    found = examine("exact posterior", exact, episode, reference, best, right)
    return [found, Finding("exact posterior, scales halved", halved)]


def label(variant: Variant, options: SibOptions) -> str:
    """The posterior's name for people."""
    beta = f", β = {variant.beta:g}" if len(options.betas) > 1 else ""
    return f"exact posterior, tempered{beta}" if variant.method == CONJUGATE else f"K = {variant.steps}{beta}"


def examine(
    name: str,
    objective: RateDistortionModule,
    episode: Episode,
    reference: Reference | None,
    best: Tensor,
    calibration: Calibration | None,
) -> Finding:
    """One posterior under all checks; ``best`` is −ELBO of the best diagonal Gaussian of each task, nats, ``[tasks]``."""
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
