"""Feature spaces: normalised features, and a linear map of them, found from the base classes or learned with the guide."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUMBERS_AT_ONCE = 2**24
"""Features that are normalised together."""


class FeatureSpace(nn.Module):
    """L2-normalised features, optionally moved into the leading discriminant directions of the base classes, and on from there.

    The map is  z = (V + Δ)ᵀ (g / ‖g‖ − m),  g = sign(f) |f|^p  with m the mean of the class means and V the top r
    right-singular vectors of the centred class means. In these coordinates a diagonal Gaussian spends its nats where classes
    differ, which is what lets the β = 1 posterior live (without it the learned prior swallows the posterior). With ``rank`` 0
    there is no m, and V is the identity. Δ is 0, or ``learned`` from 0 through the guide, by the guide's own objective.

    The power p = ½ brings the long-tailed features of rectified networks nearer to Gaussians. Source: Hu, Gripon and Pateux
    2021, "Leveraging the feature distribution in transfer-based few-shot learning", equation 2.

    Args:
        num_features: D of the backbone.
        rank: r, or 0 for all dimensions.
        power: p, above 0; 1 leaves features as they are.
        learned: whether Δ is a parameter.

    Raises:
        ValueError: a rank above D, or a power that is not positive.

    Attributes:
        num_outputs: size of the mapped features.
    """

    starts, ends = True, True  # where it does what comes first, and what comes last
    center: Tensor
    directions: Tensor
    change: Tensor

    def __init__(self, num_features: int, rank: int = 0, *, power: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        if not 0 <= rank <= num_features:
            raise ValueError(f"rank {rank} must lie between 0 and the {num_features} features")
        if not power > 0:
            raise ValueError(f"power {power} must be positive")
        self.rank, self.power, self.learned = rank, power, learned
        self.num_outputs = rank or num_features
        self.register_buffer("center", torch.zeros(num_features))
        self.register_buffer("directions", torch.eye(num_features, self.num_outputs))
        if learned:
            self.change = nn.Parameter(torch.zeros(num_features, self.num_outputs))

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> FeatureSpace:
        """Find m and V from base-class ``features`` ``[n, D]`` with class ``labels`` ``[n]``.

        Raises:
            ValueError: fewer base classes than ``rank + 1``.
        """
        if self.rank:
            means = normalised_means(features, labels, self.normalised)
            if len(means) <= self.rank:
                raise ValueError(f"{len(means)} base classes span fewer than {self.rank} discriminant directions")
            self.center.copy_(means.mean(0))
            self.directions.copy_(torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[: self.rank].T)
        return self

    def normalised(self, features: Tensor) -> Tensor:
        """g / ‖g‖, ``[..., D] -> [..., D]``."""
        return F.normalize(features if self.power == 1 else signed_power(features, self.power), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """``[..., D] -> [..., num_outputs]``"""
        linear = bool(self.rank or self.learned)
        if self.starts:
            features = self.normalised(features)
            features = features - self.center if linear else features
        if self.ends and linear:
            features = features @ (self.directions + self.change if self.learned else self.directions)
        return features

    def in_two(self) -> tuple[FeatureSpace, FeatureSpace | None]:
        """The map as two, one after the other, which share all that it has: what stays, through which items go once, up to
        (g / ‖g‖ − m), and the linear map of that, which is learned. Where nothing is learned all of it stays."""
        if not self.learned:
            return self, None
        first, last = copy.copy(self), copy.copy(self)
        first.ends = last.starts = False
        return first, last


class RawSpace(FeatureSpace):
    """Features as they are, such as the pixels of a method that adapts a whole network.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.directions = torch.zeros(num_features, 0)  # which a file need not hold

    def forward(self, features: Tensor) -> Tensor:
        return features


SMALL = 1e-4
"""Feature below which :func:`signed_power` is nearly linear, so that its slope at 0 is finite."""


def signed_power(features: Tensor, power: float) -> Tensor:
    """sign(f) ((|f| + ε)^p − ε^p) of ``features`` f of any shape, p the ``power``; 0 stays 0."""
    return features.sign() * ((features.abs() + SMALL).pow(power) - SMALL**power)


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Items of each class: ``labels`` ``[..., n]`` to ``[..., classes]``, int64."""
    return F.one_hot(labels, num_classes).sum(-2)


def class_means(features: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Mean feature of each class: ``[..., n, D], [..., n] -> [..., classes, D]``; an empty class gets zeros."""
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    one_hot = F.one_hot(labels, num_classes).to(features.dtype)
    return one_hot.mT @ features / one_hot.sum(-2).clamp_min(1)[..., None]


def normalised_means(features: Tensor, labels: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of each class's normalised features, ``[n, D], [n] -> [classes, D]``, some at a time: the copies that this takes
    stay small, however many ``features`` there are; every class of ``labels`` has one at least.

    Args:
        normalise: of features ``[n, D]``.
    """
    num_classes, at_once = int(labels.max()) + 1, max(1, NUMBERS_AT_ONCE // features.shape[-1])
    if len(features) <= at_once:
        return class_means(normalise(features), labels)
    sums = torch.zeros(num_classes, features.shape[-1], dtype=features.dtype, device=features.device)
    for some, own in zip(features.split(at_once), labels.split(at_once), strict=True):
        sums.index_add_(0, own, normalise(some))
    return sums / torch.bincount(labels, minlength=num_classes)[:, None].to(sums.dtype)
