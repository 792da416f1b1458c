"""Two bounds on the amortization gap of a guide that is trained on query labels which it never sees.

Its objective is J(q; y) = −E_q log p(y given x, w) + β KL(q ‖ p) of the queries' labels y, and its q is a function of the
support and of the queries without labels. The gap is what it loses against the best of such functions. That one is not known,
but it lies between two that are computed task by task:

- with the labels known, min_q J(q; y) bounds the objective of every posterior from below, and so the gap *from above*; what it
  is above the true gap is what the labels are worth;
- the q that is best for the guide's own predictions π, min_q J(q; π) with J linear in the labels' probabilities, needs no
  labels: it is one of the functions, and where J(q; y) of it is lower, the gap is at least the difference, *from below*. It is
  the optimum where π are the true probabilities given support and queries.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from data.episodes import Episode
from guides.tasks.free import FreeGaussianGuide
from guides.tasks.unrolled import Evidence
from inference.diagnostics.amortization import optimise_tasks, prior_guide
from models.likelihoods import Likelihood
from models.tasks.model import EmpiricalBayesModel


class ExpectedCategorical(dist.Categorical):
    """A categorical whose labels are themselves uncertain."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ_c π_c log p(c), nats: probabilities ``[..., classes]`` to ``[...]``; Σ_c 1[y = c] is an ordinary label y."""
        return (value * self.logits).sum(-1)


class ExpectedLabels(Likelihood):
    """The categorical likelihood of class probabilities in place of labels."""

    outputs = None
    targets = "class probabilities"

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return ExpectedCategorical(logits=outputs, validate_args=False)


def informed_guide(model: EmpiricalBayesModel, episode: Episode, **options: Any) -> FreeGaussianGuide:
    """The best diagonal Gaussian of each task given the *queries'* labels: the bound from above.

    Args:
        model: of tasks with classes.
        episode: with query labels.
        options: of :func:`~inference.diagnostics.amortization.optimise_tasks`, ``beta`` among them.
    """
    return optimise_tasks(model, prior_guide(model, episode), episode, on=Evidence.QUERIES, **options)


def refined_guide(model: EmpiricalBayesModel, episode: Episode, probabilities: Tensor, **options: Any) -> FreeGaussianGuide:
    """The best diagonal Gaussian of each task for a guide's own predictions: the bound from below.

    Args:
        model: of tasks with classes.
        episode: its query labels are not read.
        probabilities: π, the guide's predictions of the queries: ``[tasks, query, way]``.
        options: of :func:`~inference.diagnostics.amortization.optimise_tasks`, ``beta`` among them.
    """
    expected = EmpiricalBayesModel(model.prior, model.predictor, ExpectedLabels())
    believed = episode._replace(query_y=probabilities.detach())
    start = prior_guide(model, episode)
    return optimise_tasks(expected, start, believed, on=Evidence.QUERIES, **options)
