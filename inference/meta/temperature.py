"""How sure a trained learner may be of classes it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, linear_regression
from typing import Any

import torch
from torch import Tensor

from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import predictions
from inference.meta.settings import MetaSchedule
from inference.meta.tasks import Kinds
from models.likelihoods import TemperedCategorical

GRID = 2 ** torch.linspace(-1, 1, 49, dtype=torch.float64)
"""Temperatures that are tried."""


@torch.no_grad()
def fit_temperature(objective: RateDistortionModule, kinds: Kinds, schedule: MetaSchedule) -> dict[float, float]:
    """Give the likelihood the temperatures with the lowest NLL on tasks that decide; nothing happens where the model's
    likelihood has none, or β is 1 or more: there the objective is a bound, which another temperature would loosen for the sake
    of averages over draws.

    That of each number of shots is found by itself; with several, the line through their logarithms that is nearest by least
    squares says what it is for any number.

    Args:
        objective: trained; its likelihood is changed.
        kinds: training and validation tasks, the schedule's number of validation tasks in all.

    Returns:
        the temperature at each number of shots of the ``kinds``, as the likelihood has it now.
    """
    model: Any = objective.model
    likelihood = getattr(model, "likelihood", None)
    if not isinstance(likelihood, TemperedCategorical) or objective.elbo.beta >= 1:
        return {}
    likelihood.log_temperature.zero_()
    likelihood.power.zero_()
    found: dict[float, Tensor] = {}
    for tasks in kinds:
        number = max(1, schedule.validation_tasks // len(kinds))
        parts = []
        for episode, predicted in predictions(model, objective.guide, tasks, tasks=number, seed=schedule.seed):
            shot, way = max(episode.support_x.shape[1] / episode.way, 1.0), episode.way
            parts.append(tempered_nll(predicted.labels.logits, episode.query_y))
        nll = torch.cat(parts, dim=1).mean(1).cpu() / math.log(way)  # tasks of all shapes count alike
        found[shot] = found.get(shot, torch.zeros_like(nll)) + nll
    best = {shot: float(GRID[int(nll.argmin())]) for shot, nll in found.items()}
    log_temperature, power = line({math.log(shot): math.log(t) for shot, t in best.items()})
    likelihood.log_temperature.fill_(log_temperature)
    likelihood.power.fill_(power)
    return {shot: 1 / float(likelihood.given(shot).inverse) for shot in best}


def line(points: Mapping[float, float]) -> tuple[float, float]:
    """Offset and slope of the line nearest to ``points`` x -> y by least squares; it is level where all x are one."""
    if len(points) < 2:
        return fmean(points.values()), 0.0
    slope, offset = linear_regression(list(points), list(points.values()))
    return offset, slope


def tempered_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log of the mean over draws of softmax(logits / T) at the labels, for every T of :data:`GRID`.

    Args:
        logits: ``[draws, tasks, query, way]``.
        labels: ``[tasks, query]``.

    Returns:
        ``[temperatures, tasks]``, nats per query.
    """
    index = labels[None, ..., None].expand(len(logits), -1, -1, 1)
    each = [(logits / t).log_softmax(-1).gather(-1, index)[..., 0].logsumexp(0).mean(-1) for t in GRID.tolist()]
    return math.log(len(logits)) - torch.stack(each).double()
