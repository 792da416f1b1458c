"""Initial posteriors θ⁰ = λ(·): where the synthetic gradient descent starts.

Each returns the mean and log standard deviation of the weights, ``[tasks, rows, D]``. Source: Hu et al. 2019, section 2 (b).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.networks.feature_space import class_counts, class_means
from models.networks.functional import FunctionalNetwork
from models.tasks.predictors import Predictor


class Start(nn.Module):
    """Base class of λ.

    Attributes:
        way: the only number of rows it can start, ``None`` for any.
    """

    way: int | None = None

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Items ``[tasks, n, *item]`` and labels ``[tasks, support]`` to (loc, log_scale), ``[tasks, rows, D]`` each."""
        raise NotImplementedError


class SupportMeans(Start):
    """λ(dˡ): class means of the normalised support features, each dimension scaled by a learned coefficient; the more items a
    class has, the nearer to its mean and the surer.

    For a class of n items, with learned a, σ and ρ in each dimension,

        loc = a n / s · mean,    scale = σ / √s,    s = (n + ρ) / (1 + ρ).

    That is how the exact posterior of a Gaussian mean depends on n, ρ being the ratio of the variance within a class to that
    between classes; at n = 1 it is a · mean and σ whatever ρ. So one guide serves any number of shots, and the start of a class
    without items is 0, the mean of normalised features. Sources: Gidaris and Komodakis 2018, "feature averaging"; Bishop 2006,
    equations 2.141 and 2.142.

    Args:
        num_features: D.
        scale: initial posterior standard deviation σ of a class with one item, ``[D]`` or a number; learned.
        counted: whether n counts; ``False`` is the mean scaled by a, and σ, whatever n (guides of versions before 0.5).
    """

    logarithms: ClassVar = ("log_scale", "log_ratio")
    log_ratio: Tensor

    def __init__(self, num_features: int, scale: Tensor | float = 0.1, *, counted: bool = True) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.ones(num_features))
        self.log_scale = nn.Parameter(initial_log_scale(scale, num_features))
        self.counted = counted
        if counted:
            self.log_ratio = nn.Parameter(torch.zeros(num_features))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        means = class_means(support_x, support_y, rows)
        if not self.counted:
            loc = self.coefficient * means
            return loc, self.log_scale.expand_as(loc)
        counts = class_counts(support_y, rows).to(means)[..., None]
        ratio = self.log_ratio.exp()
        share = (counts + ratio) / (1 + ratio)
        return self.coefficient * counts / share * means, self.log_scale - 0.5 * share.log()


class LearnedStart(Start):
    """λ: one learned start for every task, independent of its data; the number of rows is fixed.

    Args:
        loc: initial mean ``[rows, D]``, such as :meth:`random` or a network's own weights.
        scale: initial posterior standard deviation.

    Raises:
        ValueError: in a call: a task with another number of rows.
    """

    logarithms: ClassVar = ("log_scale",)

    def __init__(self, loc: Tensor, scale: Tensor | float = 0.1) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(initial_log_scale(scale, loc.shape[-1]).to(loc))

    @classmethod
    def random(cls, num_features: int, rows: int, scale: Tensor | float = 0.1):
        """Rows of length about one in random directions."""
        return cls(torch.randn(rows, num_features) / num_features**0.5, scale)

    @classmethod
    def from_network(cls, network: FunctionalNetwork, scale: Tensor | float = 0.1):
        """One row, the network's own weights: those that it was built with, whose random numbers tell its units apart (units
        that start alike would stay alike), or pre-trained ones."""
        return cls(network.flat()[None], scale)

    @property
    def way(self) -> int:  # type: ignore[override]
        """Rows that it was built for."""
        return len(self.loc)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        if rows != len(self.loc):
            raise ValueError(f"this start was built for {len(self.loc)} classes, the task has {rows}")
        loc = self.loc.expand(query_x.shape[0], -1, -1)
        return loc, self.log_scale.expand_as(loc)


class SharedStart(Start):
    """λ: one learned row for every class, whatever the task and its number of classes, so that nothing depends on their order.

    Of a linear head all classes are then equally probable before the first step, as with a head of zeros.

    Args:
        loc: initial mean ``[D]``.
        scale: initial posterior standard deviation.
    """

    logarithms: ClassVar = ("log_scale",)

    def __init__(self, loc: Tensor, scale: Tensor | float = 0.1) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(initial_log_scale(scale, len(loc)).to(loc))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        loc = self.loc.expand(query_x.shape[0], rows, -1)
        return loc, self.log_scale.expand_as(loc)


class QueryMeans(LearnedStart):
    """λ(x): a permutation-invariant map of the unlabelled queries, for tasks without a support set (zero-shot).

    loc = start + A · (mean of the query features), with a learned start ``[rows, D]`` and a learned diagonal A.
    """

    def __init__(self, loc: Tensor, scale: Tensor | float = 0.1) -> None:
        super().__init__(loc, scale)
        self.coefficient = nn.Parameter(torch.ones_like(loc))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        loc, log_scale = super().forward(support_x, support_y, query_x, rows)
        return loc + self.coefficient * query_x.mean(-2, keepdim=True), log_scale


def initial_log_scale(scale: Tensor | float, num_features: int) -> Tensor:
    """``[D]`` logarithm of a number or of a vector of standard deviations."""
    return torch.as_tensor(scale).log().expand(num_features).clone()


class RidgeStart(Start):
    """λ(dˡ) for regression: ridge regression on the support set, with learned prior and noise.

    For linear regression it is the exact posterior mean, with the mean-field posterior's exact variance, 1 over the diagonal
    of the precision. Source: Bishop 2006, equations 3.50 and 3.51.

    Args:
        prior_loc, prior_scale: ``[D]``, initial.
        noise: standard deviation, initial.
    """

    def __init__(self, prior_loc: Tensor, prior_scale: Tensor, noise: float) -> None:
        super().__init__()
        self.prior_loc, self.prior_log_scale = nn.Parameter(prior_loc.clone()), nn.Parameter(prior_scale.log())
        self.log_noise = nn.Parameter(torch.tensor(noise).log())

    def design(self, support_x: Tensor) -> tuple[Tensor, Tensor]:
        """∂ŷ/∂w and ŷ at the prior's mean, ``[tasks, n, D]`` and ``[tasks, n]``."""
        return support_x, (support_x @ self.prior_loc[:, None])[..., 0]

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """``rows`` is 1, the single output of regression."""
        weight = (-2 * self.log_noise).exp()
        design, predicted = self.design(support_x)
        precision = torch.diag((-2 * self.prior_log_scale).exp()) + weight * design.mT @ design
        shift = weight * (design.mT @ (support_y - predicted)[..., None])[..., 0]
        loc = self.prior_loc + torch.linalg.solve(precision, shift)
        log_scale = -0.5 * precision.diagonal(dim1=-2, dim2=-1).log()
        return loc[:, None], log_scale[:, None]


class LinearisedStart(RidgeStart):
    """λ(dˡ) for regression by a network: :class:`RidgeStart` on the network linearised at the prior's mean.

    One Gauss–Newton step from the prior's mean, with learned prior and noise. Source: Khan et al. 2019, "Approximate inference
    turns deep networks into Gaussian processes", section 3.

    Args:
        predictor: ŷ(x, w) with one row of weights; the model's own module.
        prior_loc, prior_scale, noise: as in :class:`RidgeStart`.
    """

    def __init__(self, predictor: Predictor, prior_loc: Tensor, prior_scale: Tensor, noise: float) -> None:
        super().__init__(prior_loc, prior_scale, noise)
        self.predictor = predictor

    def design(self, support_x: Tensor) -> tuple[Tensor, Tensor]:
        prepared = self.predictor.prepare(support_x)
        weights = self.prior_loc.expand(*support_x.shape[:2], 1, -1)  # [tasks, n, 1, D]: each item has its own copy
        each = torch.func.vjp(lambda w: self.predictor.outputs(prepared[..., None, :], w)[..., 0, 0], weights)
        return each[1](torch.ones_like(each[0]))[0][..., 0, :], each[0]
