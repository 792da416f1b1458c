"""Feature spaces: normalised features, and the directions in which the base classes differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUMBERS_AT_ONCE = 2**24
"""Features that are normalised together."""


class FeatureSpace(nn.Module):
    """L2-normalised features, optionally moved into the leading discriminant directions of the base classes.

    The map is  z = V_rᵀ (f / ‖f‖ − m)  with m the mean of the class means and V_r the top r right-singular vectors of the
    centred class means. In these coordinates a diagonal Gaussian spends its nats where classes differ, which is what lets
    the β = 1 posterior live (without it the learned prior swallows the posterior). With ``rank`` 0 the map is f / ‖f‖.

    Args:
        num_features: D of the backbone.
        rank: r, or 0 for normalisation alone.

    Raises:
        ValueError: a rank above D.

    Attributes:
        num_outputs: size of the mapped features.
    """

    center: Tensor
    directions: Tensor

    def __init__(self, num_features: int, rank: int = 0) -> None:
        super().__init__()
        if not 0 <= rank <= num_features:
            raise ValueError(f"rank {rank} must lie between 0 and the {num_features} features")
        self.rank = rank
        self.num_outputs = rank or num_features
        self.register_buffer("center", torch.zeros(num_features))
        self.register_buffer("directions", torch.eye(num_features, self.num_outputs))

    def fit(self, features: Tensor, labels: Tensor) -> FeatureSpace:
        """Find m and V_r from base-class ``features`` ``[n, D]`` with class ``labels`` ``[n]``.

        Raises:
            ValueError: fewer base classes than ``rank + 1``.
        """
        if self.rank:
            means = normalised_means(features, labels)
            if len(means) <= self.rank:
                raise ValueError(f"{len(means)} base classes span fewer than {self.rank} discriminant directions")
            self.center.copy_(means.mean(0))
            self.directions.copy_(torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[: self.rank].T)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """``[..., D] -> [..., num_outputs]``"""
        normalised = F.normalize(features, dim=-1)
        return (normalised - self.center) @ self.directions if self.rank else normalised


def class_means(features: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Mean feature of each class: ``[..., n, D], [..., n] -> [..., classes, D]``; an empty class gets zeros."""
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    one_hot = F.one_hot(labels, num_classes).to(features.dtype)
    return one_hot.mT @ features / one_hot.sum(-2).clamp_min(1)[..., None]


def normalised_means(features: Tensor, labels: Tensor) -> Tensor:
    """Mean of each class's L2-normalised features, ``[n, D], [n] -> [classes, D]``, some at a time: the copies that this takes
    stay small, however many ``features`` there are; every class of ``labels`` has one at least."""
    num_classes, at_once = int(labels.max()) + 1, max(1, NUMBERS_AT_ONCE // features.shape[-1])
    if len(features) <= at_once:
        return class_means(F.normalize(features, dim=-1), labels)
    sums = torch.zeros(num_classes, features.shape[-1], dtype=features.dtype, device=features.device)
    for some, own in zip(features.split(at_once), labels.split(at_once), strict=True):
        sums.index_add_(0, own, F.normalize(some, dim=-1))
    return sums / torch.bincount(labels, minlength=num_classes)[:, None].to(sums.dtype)
