"""SIB's steps on tasks with a known answer: regret, calibration and amortization gap by start, gradient and K.

    python -m benchmarks.regret_table linear runs/regret
    python -m benchmarks.regret_table network runs/regret

β = 1. Each guide is trained by itself, on 16 000 tasks (of a network: 8000); all are tested on the same tasks. What is trained,
and NUTS's draws, are kept in the folder: started again, the script goes on where it was.
Writes ``<data>.json`` and ``<data>_*.png`` there and prints the table. The last rows but the optimised ones are the paper's
program as it stands: ξ on the unlabelled queries, trained on the queries' labels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from data.episodes import Episode
from data.seeding import seeded
from inference.diagnose import figures
from inference.diagnostics.amortization import (
    FULL_PARTICLES,
    FULL_STEP_SIZE,
    full_guide,
    optimise_tasks,
    prior_guide,
    task_losses,
)
from inference.diagnostics.findings import Finding, format_findings
from inference.diagnostics.tasks import calibrate_tasks
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.meta.options import SibOptions
from inference.meta.regression import fit_model, scored_tasks
from inference.meta.regression_diagnosis import DIAGONAL, DRAWN, FULL, exact_findings, examine, simulated_tasks
from inference.meta.regression_guides import build_guide, fit_guide, training_objective
from inference.meta.regression_reference import reference_for
from inference.meta.regression_tasks import TEST, Problem
from inference.meta.settings import GuideSettings, MetaSchedule, settings
from inference.meta.variants import Variant
from inference.runs.files import write_json
from inference.runs.study import draw_all
from inference.runs.tensors import load_state, save_tensors
from models.tasks.model import EmpiricalBayesModel

STEPS, TASKS, SIMULATIONS = (0, 1, 3, 8), 200, 500
TRAINING = {"linear": 16000, "network": 8000}
STARTS = {"support": "ridge", "learned": "learned"}
GRADIENTS = {"equivariant": "ξ", "exact": "exact gradient", "mlp": "the paper's ξ on queries"}


def programs(data: str) -> Iterator[tuple[str, str, str, int]]:
    """Name, start, gradient and K of each guide."""
    for start, words in STARTS.items():
        if data == "network" and start == "learned":
            yield f"{words} start, K = 0", start, "equivariant", 0
            yield from ((f"{words} start, {GRADIENTS['equivariant']}, K = {k}", start, "equivariant", k) for k in STEPS[1:])
            continue
        yield f"{words} start, K = 0", start, "equivariant", 0
        for gradient in ("equivariant", "exact"):
            yield from ((f"{words} start, {GRADIENTS[gradient]}, K = {k}", start, gradient, k) for k in STEPS[1:])
    if data == "linear":
        yield from ((f"{STARTS['support']} start, {GRADIENTS['mlp']}, K = {k}", "support", "mlp", k) for k in (0, 3))


def kept(path: Path, module: nn.Module, fit: Callable[[], object]) -> None:
    """Read a module's parameters back, or fit and write them."""
    if not path.exists():
        fit()
        save_tensors(path, module.state_dict(), {})
    load_state(module, path)


def trained(model: EmpiricalBayesModel, options: SibOptions, steps: int, path: Path) -> RateDistortionModule:
    """A guide with K steps."""
    problem = Problem(options.data)
    variant = Variant("sib", "linear" if problem.is_linear else "network", "gaussian", 1.0, steps)
    with seeded(options.seed):
        guide = build_guide(problem, model, settings(GuideSettings, options), variant)
    objective = training_objective(1.0, model, guide)
    schedule = replace(settings(MetaSchedule, options), tasks=TRAINING[options.data])
    kept(path, objective, lambda: fit_guide(objective, problem, options.queries, schedule))
    return objective


def free_gaussians(model: EmpiricalBayesModel, episode: Episode, folder: Path, data: str) -> dict[str, RateDistortionModule]:
    """Gaussians optimised on each task."""
    diagonal = prior_guide(model, episode)
    kept(folder / f"{data}-diagonal.safetensors", diagonal, lambda: optimise_tasks(model, diagonal, episode))
    full, options = full_guide(diagonal), {"step_size": FULL_STEP_SIZE, "particles": FULL_PARTICLES}
    kept(folder / f"{data}-full.safetensors", full, lambda: optimise_tasks(model, full, episode, **options))
    return {name: RateDistortionELBO()(model, guide) for name, guide in ((DIAGONAL, diagonal), (FULL, full))}


def main(data: str, out: str) -> list[Finding]:
    """Train and check everything."""
    folder, options = Path(out), SibOptions(data=data, beta=1.0)
    model = Problem(data).model()
    kept(folder / f"{data}-model.safetensors", model, lambda: model.load_state_dict(fit_model(options).state_dict()))
    episode = scored_tasks(options, TEST)
    reference = reference_for(Problem(data), model, episode, folder)
    episode = episode.tasks(slice(TASKS if reference is None or reference.weights is None else reference.tasks))
    simulated = simulated_tasks(options, SIMULATIONS)
    free = free_gaussians(model, episode, folder, data)
    best = task_losses(model, next(iter(free.values())).guide, episode, num_samples=DRAWN)
    findings = exact_findings(model, options, episode, reference, best, simulated)
    for name, start, gradient, steps in programs(data):
        path = folder / f"{data}-{start}-{gradient}-k{steps}.safetensors"
        objective = trained(model, replace(options, initialisation=start, gradient=gradient), steps, path)
        calibration = calibrate_tasks(model, objective.guide, simulated, seed=options.seed)
        findings.append(examine(name, objective, episode, reference, best, calibration))
        print(findings[-1].verdict, flush=True)
    findings += [examine(name, objective, episode, reference, best, None) for name, objective in free.items()]
    write_json(folder / f"{data}.json", [finding.row() for finding in findings])
    draw_all(lambda: {f"{data}_{name}": draw for name, draw in figures(findings).items()}, folder)
    print(format_findings(findings))
    return findings


if __name__ == "__main__":
    main(*sys.argv[1:])
