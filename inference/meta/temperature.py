"""How sure a trained learner may be of classes it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import predictions
from inference.meta.settings import MetaSchedule
from inference.meta.tasks import Kinds
from models.likelihoods import TemperedCategorical, log_shape

GRID = 2 ** torch.linspace(-1, 1, 49, dtype=torch.float64)
"""Temperatures that are tried."""


@torch.no_grad()
def fit_temperature(objective: RateDistortionModule, kinds: Kinds, schedule: MetaSchedule) -> dict[tuple[float, int], float]:
    """Give the likelihood the temperatures with the lowest NLL on tasks that decide; nothing happens where the model's
    likelihood has none, or β is 1 or more: there the objective is a bound, which another temperature would loosen for the sake
    of averages over draws.

    That of each shape of tasks is found by itself; the powers of the likelihood are those nearest to all of them.

    Args:
        objective: trained; its likelihood is changed.
        kinds: training and validation tasks, the schedule's number of validation tasks in all.

    Returns:
        (shot, way) of each of the ``kinds`` -> temperature, as the likelihood has it now.
    """
    model: Any = objective.model
    likelihood = getattr(model, "likelihood", None)
    if not isinstance(likelihood, TemperedCategorical) or objective.elbo.beta >= 1:
        return {}
    likelihood.log_temperature.zero_()
    likelihood.powers.zero_()
    found: dict[tuple[float, int], float] = {}
    for tasks in kinds:
        number = max(1, schedule.validation_tasks // len(kinds))
        parts = []
        for episode, predicted in predictions(model, objective.guide, tasks, tasks=number, seed=schedule.seed):
            shape = episode.support_x.shape[1] / episode.way, episode.way
            parts.append(tempered_nll(predicted.labels.logits, episode.query_y))
        found[shape] = float(GRID[int(torch.cat(parts, dim=1).mean(1).argmin())])
    offset, slopes = plane([log_shape(*shape) for shape in found], [math.log(temperature) for temperature in found.values()])
    likelihood.log_temperature.fill_(offset)
    likelihood.powers.copy_(slopes)
    return {shape: 1 / float(likelihood.given(*shape).inverse) for shape in found}


def plane(x: Sequence[Sequence[float]], y: Sequence[float]) -> tuple[float, Tensor]:
    """Offset and slopes ``[coordinates]`` of the plane nearest to points (``x``, ``y``) by least squares, the flattest where
    there are several; it is level along coordinates in which the points do not differ."""
    at, height = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    slopes = torch.linalg.pinv(at - at.mean(0)) @ (height - height.mean())
    return float(height.mean() - at.mean(0) @ slopes), slopes


def tempered_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log of the mean over draws of softmax(logits / T) at the labels, for every T of :data:`GRID`; not to be differentiated.

    Args:
        logits: ``[draws, tasks, query, way]``.
        labels: ``[tasks, query]``.

    Returns:
        ``[temperatures, tasks]``, nats per query.
    """
    rows = logits.mT  # classes before queries, as they lie in memory
    rows = rows - rows.amax(-2, keepdim=True)  # of what is at most 0, and 0 for one class, powers can be added up as they are
    right = rows.gather(-2, labels[None, :, None].expand(len(rows), -1, 1, -1))[..., 0, :]
    powers, each = torch.empty_like(rows), list[Tensor]()
    for t in GRID.tolist():
        whole = torch.div(rows, t, out=powers).exp_().sum(-2)
        each.append((right / t - whole.log()).logsumexp(0).mean(-1))
    return math.log(len(logits)) - torch.stack(each).double()
