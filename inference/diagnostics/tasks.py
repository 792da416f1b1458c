"""Simulation-based calibration and predictive coverage of a model and guide over tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data.episodes import Episode
from data.seeding import seeded
from inference.diagnostics.calibration import LOG_LIKELIHOOD, Calibration, calibrate, distribution_level
from inference.evaluation.predictive import labels_of, trace_guide, trace_model

OUTPUTS = 3
"""Outputs of each task that calibration ranks beside its weights."""
WEIGHTS = "weights"


@torch.no_grad()
def calibrate_tasks(
    model: nn.Module,
    guide: nn.Module,
    episode: Episode,
    *,
    draws: int = 99,
    level: float = 0.95,
    seed: int = 0,
    scale: float = 1.0,
) -> Calibration:
    """Simulation-based calibration: tasks are drawn from the model itself, w ~ p(w) and the support's y ~ p(y given x, w), and
    the guide sees the supports.

    Coordinates: every weight; the model's output at :data:`OUTPUTS` queries; and the log likelihood of the support, without
    which a posterior that has learned nothing would pass.

    Args:
        model: with the latent site ``weights`` and real labels.
        guide: its posterior given the support.
        episode: supplies the inputs, a simulation per task; its labels are not read.
        draws: posterior draws per simulation.
        level: of the verdict.
        seed: of the simulations and draws.
        scale: factor on the draws' distance from their mean: with ½ a posterior half as wide, as a control that must fail.
    """
    support = episode.on_support()
    with seeded(seed, 0, device=episode.query_x.device):
        truth = trace_model(model, None, support, 1)
        labels = labels_of(truth).sample()[0]
    simulated = episode._replace(support_y=labels, query_y=None)
    with seeded(seed, 1, device=episode.query_x.device):
        drawn = trace_guide(guide, simulated, draws)
    if scale != 1:
        narrowed(drawn.nodes[WEIGHTS], scale)
    found = [coordinates(model, trace, simulated, size) for trace, size in ((truth, 1), (drawn, draws))]
    count = found[0].shape[-1] - OUTPUTS - 1
    names = [*(f"w{i + 1}" for i in range(count)), *(f"output {i + 1}" for i in range(OUTPUTS)), LOG_LIKELIHOOD]
    return calibrate(found[0][0], found[1], names, level=level, seed=seed)


def narrowed(site: Any, scale: float) -> None:
    """Bring the draws of a site nearer to their mean, to ``scale`` of the distance."""
    site["value"] = site["fn"].mean + scale * (site["value"] - site["fn"].mean)


def coordinates(model: nn.Module, trace: Any, episode: Episode, draws: int) -> Tensor:
    """What is ranked, under each draw of a trace: ``[draws, tasks, coordinates]``."""
    asked = episode._replace(query_x=episode.query_x[:, :OUTPUTS])
    outputs = labels_of(trace_model(model, trace, asked, draws)).mean
    fit = labels_of(trace_model(model, trace, episode.on_support(), draws)).log_prob(episode.support_y).sum(-1, keepdim=True)
    weights = trace.nodes[WEIGHTS]["value"].squeeze(-3).flatten(-2)
    return torch.cat([weights, outputs, fit], dim=-1)


@torch.no_grad()
def predictive_levels(model: nn.Module, guide: nn.Module, episode: Episode, *, num_samples: int = 400, seed: int = 0) -> Tensor:
    """Predictive distribution functions at the queries' true targets, uniform where coverage is right: ``[tasks, query]``."""
    with seeded(seed, device=episode.query_x.device):
        drawn = trace_guide(guide, episode, num_samples)
    assert episode.query_y is not None
    return distribution_level(labels_of(trace_model(model, drawn, episode, num_samples)), episode.query_y)
