"""What a regression posterior is held against: exact Bayes, or NUTS on the same tasks, kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.episodes import Episode
from data.errors import UserError
from inference.diagnostics.nuts import r_hat, run_nuts
from inference.diagnostics.regret import mixture_log_density
from inference.meta.regression_tasks import EXACT, Problem
from inference.runs.files import sole_writer
from inference.runs.tensors import load_tensors, save_tensors
from models.tasks.model import EmpiricalBayesModel

EXACT_BAYES = "exact Bayes"
"""Name of a reference that is a formula."""
TASKS, CHAINS, DRAWS, WARMUP = 64, 2, 400, 300
KEPT = 100  # draws of the weights per chain that are kept, evenly spaced


@dataclass(frozen=True)
class Reference:
    """The right posterior of some tasks, as far as it is known.

    Attributes:
        log_predictive: log p(y given x, support) of the queries, nats: ``[tasks, query]``, or ``[chains, tasks, query]``.
        name: ``exact Bayes`` or ``NUTS``.
        weights: NUTS's draws ``[draws, tasks, D]``; ``None`` where the reference is a formula.
        worst_r_hat: over all query outputs.
        divergences, seconds: of the sampler.
    """

    log_predictive: Tensor
    name: str
    weights: Tensor | None = None
    worst_r_hat: float | None = None
    divergences: int = 0
    seconds: float = 0.0

    @property
    def exact_nll(self) -> float | None:
        """−log p(y given x, support), nats per query, where it is exact."""
        return float(-self.log_predictive.mean()) if self.name == EXACT_BAYES else None

    @property
    def tasks(self) -> int:
        """How many it is of."""
        return self.log_predictive.shape[-2]


def reference_for(problem: Problem, model: EmpiricalBayesModel, episode: Episode, folder: Path) -> Reference:
    """The reference of a problem's tasks: exact where it is known, else NUTS on the first of them.

    Args:
        folder: where NUTS's draws are kept, so that runs beside each other share them.
    """
    if problem.name in EXACT:
        return Reference(EXACT[problem.name](episode), EXACT_BAYES)
    return nuts_reference(model, episode.tasks(slice(TASKS)), folder)


def nuts_reference(
    model: EmpiricalBayesModel, episode: Episode, folder: Path, *, draws: int = DRAWS, warmup: int = WARMUP
) -> Reference:
    """NUTS on the tasks' supports under the model: read back where ``folder`` has it, else sampled and written.

    ``warmup``: transitions of each chain before its ``draws``.

    Raises:
        UserError: the kept file is damaged.
    """
    path = folder / f"nuts-{fingerprint(model, episode, draws, warmup)}.safetensors"
    if path.exists():
        tensors, known = load_tensors(path)
        if not {"log_predictive", "weights"} <= tensors.keys() or "seconds" not in known:
            raise UserError(f"{path} is no file of NUTS draws: delete it, and it will be made again")
        return Reference(tensors["log_predictive"], "NUTS", tensors["weights"].double(), **known)
    size = f"{CHAINS} chains of {warmup} + {draws} transitions"
    print(f"NUTS on {len(episode.query_x)} test tasks, {size}; takes minutes, kept in {path} ...")
    reference = sample_reference(model, episode, draws=draws, warmup=warmup)
    known = {name: getattr(reference, name) for name in ("worst_r_hat", "divergences", "seconds")}
    assert reference.weights is not None
    with sole_writer(folder, path.name):
        save_tensors(path, {"log_predictive": reference.log_predictive, "weights": reference.weights.float()}, known)
    return reference


@torch.no_grad()
def sample_reference(model: EmpiricalBayesModel, episode: Episode, *, draws: int = DRAWS, warmup: int = WARMUP) -> Reference:
    """NUTS on the tasks' supports: ``warmup`` transitions of each chain, then its ``draws``."""
    assert episode.query_y is not None
    with torch.enable_grad():
        sampled = run_nuts(model, *episode.on_support(), chains=CHAINS, draws=draws, warmup=warmup)
    weights = sampled.sites["weights"].squeeze(-3)  # [chains, draws, tasks, 1, D]
    outputs = model.predictor(episode.query_x, weights)  # [chains, draws, tasks, query, 1]
    densities = model.likelihood(outputs).log_prob(episode.query_y)
    thinned = weights[:, :: max(1, draws // KEPT), :, 0].flatten(0, 1)
    worst = float(r_hat(outputs[..., 0]).max())
    return Reference(mixture_log_density(densities, 1), "NUTS", thinned, worst, sampled.divergences, sampled.seconds)


def fingerprint(model: EmpiricalBayesModel, episode: Episode, draws: int, warmup: int) -> str:
    """Of everything that the draws depend on, ``warmup`` transitions included."""
    numbers = (*model.prior.hyperparameters(), *model.likelihood.state_dict().values(), *episode[:4])
    content = b"".join(part.detach().double().numpy().tobytes() for part in numbers if part is not None)
    return hashlib.sha256(content + repr((CHAINS, draws, warmup)).encode()).hexdigest()[:12]
