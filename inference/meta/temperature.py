"""How sure a trained learner may be of classes it was not trained on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import predictions
from inference.meta.settings import MetaSchedule
from inference.meta.tasks import Kinds
from models.likelihoods import TemperedCategorical

GRID = 2 ** torch.linspace(0, 1, 25, dtype=torch.float64)
"""Temperatures that are tried. Features know the classes they were trained on better than new ones, so that a learner is too
sure of new classes, never the other way round by much."""


@torch.no_grad()
def fit_temperature(objective: RateDistortionModule, kinds: Kinds, schedule: MetaSchedule) -> float:
    """Give the likelihood the temperature with the lowest NLL on tasks that decide, and return it; 1 where the model's
    likelihood has none.

    Args:
        objective: trained; its likelihood is changed.
        kinds: training and validation tasks, the schedule's number of validation tasks in all.
    """
    model: Any = objective.model
    likelihood = getattr(model, "likelihood", None)
    if not isinstance(likelihood, TemperedCategorical):
        return 1.0
    likelihood.log_temperature.zero_()
    found = torch.zeros(len(GRID), dtype=torch.float64)
    for tasks in kinds:
        number = max(1, schedule.validation_tasks // len(kinds))
        parts = [
            tempered_nll(predicted.labels.logits, episode.query_y)
            for episode, predicted in predictions(model, objective.guide, tasks, tasks=number, seed=schedule.seed)
        ]
        found += torch.cat(parts, dim=1).mean(1).cpu()
    best = float(GRID[int(found.argmin())])
    likelihood.log_temperature.fill_(math.log(best))
    return best


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
