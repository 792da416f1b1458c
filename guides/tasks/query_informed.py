"""A guide that reads query labels while it is trained, for a model whose prior has seen the support; and the parts of both."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.tasks.families import PosteriorParameters
from guides.tasks.unrolled import UnrolledGuide
from models.parameters import declare
from models.plates import num_classes, task_plate
from models.sites import FROM_PRIOR
from models.tasks.predictors import Predictor


class DescentGaussian(nn.Module):
    """N(μ − γ ∇L(μ, D), diag s²): the Gaussian around where a step of gradient descent on D ends.

    With D the support it is p(θ given D_support), with D the queries q(θ given D_query); without a step N(μ, diag s²). Each
    dimension has a standard deviation of its own, s = √(exp(2 · log_scale) + floor²), which all rows share.

    Source: Finn, Xu and Levine 2018, algorithm 1, lines 4 and 5 and algorithm 2, line 2.

    Args:
        descent: the step: a guide of points whose start is μ and whose rule has γ, learned on the log scale. A step on queries
            needs their labels.
        scale: initial s.
        floor: the least s: the loss of a draw falls with s, so that a scale without one may never stop shrinking.
        learned: whether ``log_scale`` is.
    """

    log_scale: Tensor
    logarithms: ClassVar = ("log_scale",)

    def __init__(self, descent: UnrolledGuide, scale: float, *, floor: float = 1e-3, learned: bool = True) -> None:
        super().__init__()
        self.descent, self.floor = descent, floor
        start: Any = descent.start
        declare(self, "log_scale", torch.full_like(start.log_scale.detach(), float(scale)).log(), learned=learned)

    @property
    def scale(self) -> Tensor:
        """s, ``[D]``."""
        return ((2 * self.log_scale).exp() + self.floor**2).sqrt()

    def forward(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None, way: int | None = None
    ) -> dist.TorchDistribution:
        """The Gaussian, with batch_shape ``[tasks, 1]`` (the plates) and event_shape ``[rows, D]``."""
        loc = self.descent.unroll(support_x, support_y, query_x, query_y, way)[-1].loc
        return dist.Normal(loc.unsqueeze(-3), self.scale.expand_as(loc).unsqueeze(-3)).to_event(2)


class Adaptation(nn.Module):
    """φ = θ − α ∇L(θ, D), K times: from drawn weights to those that predict.

    Args:
        descent: the steps: a guide of points, on the support; its start is not used.
    """

    def __init__(self, descent: UnrolledGuide) -> None:
        super().__init__()
        self.descent = descent

    def forward(self, weights: Tensor, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """``weights`` θ ``[..., tasks, rows, D]`` to φ of the same shape; differentiable through all steps."""
        start, known = PosteriorParameters(weights, torch.zeros_like(weights)), self.descent.point_hyperparameters()
        return self.descent.descend(start, support_x, support_y, query_x, hyperparameters=known)[-1].loc


class QueryInformedGuide(PyroModule):
    """q(θ_t given D_query) in training mode, where query labels are given; everywhere else the model's own p(θ_t given
    D_support).

    So no prediction ever depends on query labels: in evaluation mode they are not looked at, and the site's ``infer`` says
    that it was drawn from the prior. With no posterior it is the prior always, and the rate 0: "MAML + noise".

    Source: Finn, Xu and Levine 2018, algorithms 1 (training) and 2 (test).

    Args:
        prior: p, the model's own module.
        posterior: q, from the same arguments, query labels included, to a distribution of the same shape; ``None`` for p.
    """

    def __init__(self, prior: DescentGaussian, posterior: DescentGaussian | None = None) -> None:
        super().__init__()
        self.prior, self.posterior = prior, posterior

    @property
    def predictor(self) -> Predictor:
        """ŷ, the model's own module."""
        return self.prior.descent.predictor

    @property
    def start(self) -> Any:
        """μ, as a start of descent."""
        return self.prior.descent.start

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Sample the site ``weights`` (event ``[rows, D]``) in the plate ``tasks``; shapes as in the model."""
        way = num_classes(support_y) if way is None else way
        infer: Any  # Pyro's own type lists its own keys
        if self.posterior is None or not self.training or query_y is None:
            fn, infer = self.prior(support_x, support_y, query_x, None, way), {FROM_PRIOR: True}
        else:
            fn, infer = self.posterior(support_x, support_y, query_x, query_y, way), {}
        with task_plate(query_x, None):
            return pyro.sample("weights", fn, infer=infer)
