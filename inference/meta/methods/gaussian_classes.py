"""Gaussian classes: each class is a Gaussian about its mean, whose posterior given the support is exact; nothing is trained.

For features of a network that knows many classes already: a task's own support says where classes are and how wide.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import class_means
from models.plates import num_classes, task_plate

CONTRAST = 8.0
"""Logit scale × mean squared distance between class means. The dimensions of features are far from independent, so that their
Gaussian likelihood would be far too sure; this number had the lowest NLL, or nearly, on validation classes of letters and of
photographs, at 1 to 5 shots and 5 and 10 ways."""


class Moments(NamedTuple):
    """What a task's support says of its classes; ``[tasks, 1, 1]`` each but for ``center`` ``[tasks, 1, D]``.

    Attributes:
        center: μ, mean of the class means.
        between: τ², variance of class means in each dimension.
        within: σ², variance of a class's items in each dimension; τ² / 2 where no class has two items.
        distance: mean squared distance between class means.
    """

    center: Tensor
    between: Tensor
    within: Tensor
    distance: Tensor


class GaussianClasses(PyroModule):
    """w_c ~ N(μ, τ² I), y ~ Categorical(softmax(s (⟨x, w_c⟩ − ½‖w_c‖²))), s = CONTRAST / d²; μ, τ² and d² are the support's.

    Sites: ``weights`` in the plate ``tasks`` (event ``[way, D]``), ``labels`` in ``tasks`` × ``queries``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = CategoricalLikelihood()

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Run the program; shapes as in :class:`~models.tasks.model.EmpiricalBayesModel`."""
        way = num_classes(support_y) if way is None else way
        seen = moments(support_x, support_y, way)
        with task_plate(query_x, None):
            prior = dist.Normal(seen.center[:, None], seen.between[:, None].sqrt())
            weights = pyro.sample("weights", prior.expand((len(query_x), 1, way, query_x.shape[-1])).to_event(2))
            means = weights.squeeze(-3)
            logits = CONTRAST / seen.distance * (query_x @ means.mT - 0.5 * means.square().sum(-1)[..., None, :])
            with pyro.plate("queries", query_x.shape[1], dim=-1):
                return pyro.sample("labels", self.likelihood(logits), obs=query_y)


class ClassMeansPosterior(PyroModule):
    """p(w given support) where items of class c are N(w_c, σ² I): conjugate, for any number of items in each class.

    Source: Murphy 2012, section 4.4.2.1 (a linear Gaussian system).
    """

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Sample ``weights``; shapes as in :class:`~models.tasks.model.EmpiricalBayesModel`."""
        way = num_classes(support_y) if way is None else way
        seen = moments(support_x, support_y, way)
        counts = F.one_hot(support_y, way).sum(-2)[..., None].to(support_x.dtype)
        precision = 1 / seen.between + counts / seen.within  # [tasks, way, 1]
        known = seen.center / seen.between + counts * class_means(support_x, support_y, way) / seen.within
        with task_plate(query_x, None):
            posterior = dist.Normal((known / precision)[:, None], precision.rsqrt()[:, None].expand(known[:, None].shape))
            return pyro.sample("weights", posterior.to_event(2))


def moments(support_x: Tensor, support_y: Tensor, way: int) -> Moments:
    """The support's moments: ``[tasks, support, D]`` and ``[tasks, support]``, with every class in every task."""
    means, size = class_means(support_x, support_y, way), support_x.shape[-1]
    center = means.mean(-2, keepdim=True)
    spread = (means - center).square().sum((-2, -1), keepdim=True)
    tiny = torch.finfo(spread.dtype).eps
    distance = (2 * spread / (way - 1)).clamp_min(tiny)  # the mean over pairs of ‖m_a − m_b‖²
    between = distance / (2 * size)
    own = means.gather(-2, support_y[..., None].expand(support_x.shape))
    free = support_x.shape[-2] - way
    residual = (support_x - own).square().sum((-2, -1), keepdim=True)
    within = residual / (size * free) if free else between / 2
    return Moments(center, between, within.clamp_min(tiny * between), distance)


def variants(swept: VariantSettings) -> list[Variant]:
    """One: it has its own predictor, posterior and β = 1."""
    return [Variant("gaussian-classes", "distance", "gaussian", 1.0, 0)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """The program and its posterior; the base classes' ``means`` and settings are not needed."""
    return GaussianClasses(), ClassMeansPosterior()
