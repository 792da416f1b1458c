"""What a scorer is, and sums over the labelled items of a class. Items with label −1 are unlabelled."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError
from models.networks.feature_space import class_means
from models.tasks.predictors import Predictor


class Scorer(nn.Module):
    """Base class: logits of all classes for each query, from the support items and their labels.

    Tasks do not see each other, and the order of queries is of no matter. Support items with label −1 are left out, unless a
    subclass says that it uses them.

    Attributes:
        transductive: whether what a query is given depends on the other queries of its task.
        way: the only number of classes it can take; ``None`` for any.
    """

    transductive: bool = False
    way: int | None = None

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        """``[tasks, support, D], [tasks, support], [tasks, query, D] -> [tasks, query, way]``: logits.

        Raises:
            UserError: a ``way`` that it cannot take.
        """
        raise NotImplementedError

    def check_way(self, way: int) -> None:
        """Refuse tasks of another number of classes than it was made for.

        Raises:
            UserError: ``way`` is not the one that it can take.
        """
        if self.way not in (None, way):
            raise UserError(f"tasks of {way} classes for a scorer that can only take {self.way}: give `way={self.way}`")


class ScaledScorer(Scorer):
    """Base of scorers with a learned positive factor of all logits, the inverse temperature; learned on the log scale.

    Args:
        scale: at first.
    """

    logarithms: ClassVar[tuple[str, ...]] = ("log_scale",)

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    @property
    def scale(self) -> Tensor:
        """The positive factor, learned."""
        return self.log_scale.exp()


class MeansScorer(Scorer):
    """ŷ(x, class means of the support): prototypical networks, on features that are given.

    Source: Snell et al. 2017, equations 1 and 2.

    Args:
        predictor: ŷ of features and one vector for each class; its scale is learned.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        return self.predictor(query_x, labelled_means(support_x, support_y, way))


class DescriptionsScorer(MeansScorer):
    """ŷ(x, c) with prototypes c_k = A v_k / ‖A v_k‖ of descriptions v_k: zero-shot prototypical networks, whose support are
    descriptions of the classes, each with its class's label, and not items.

    Prototypes have unit length, for descriptions come from another domain than queries, which are not constrained, and are
    embedded before they come here. Of several descriptions of a class their mean is taken.

    Source: Snell et al. 2017, section 2.7, and section 3.3 for a linear map of descriptions.

    Args:
        predictor: ŷ of features and one vector for each class; its scale is learned.
        num_described: numbers of a description.
        num_features: D, of queries. A starts as the identity, padded with zeros where the two differ.
        unit: whether prototypes have unit length.
    """

    def __init__(self, predictor: Predictor, num_described: int, num_features: int, *, unit: bool = True) -> None:
        super().__init__(predictor)
        self.unit, self.map = unit, nn.Linear(num_described, num_features, bias=False)
        nn.init.eye_(self.map.weight)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        prototypes = self.map(labelled_means(support_x, support_y, way))
        return self.predictor(query_x, F.normalize(prototypes, dim=-1) if self.unit else prototypes)


def one_hot(labels: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """``[..., n] -> [..., n, way]`` of the ``dtype``; all 0 where the label is −1."""
    return (labels[..., None] == torch.arange(way, device=labels.device)).to(dtype)


def labelled_means(support_x: Tensor, support_y: Tensor, way: int) -> Tensor:
    """Mean of each class's labelled items, ``[tasks, way, D]``; a class without any gets zeros."""
    return class_means(support_x, torch.where(support_y < 0, way, support_y), way + 1)[..., :way, :]


def log_sums(scores: Tensor, support_y: Tensor, way: int) -> Tensor:
    """log Σ_{i: y_i = c} exp(score_i), ``[tasks, query, support], [tasks, support] -> [tasks, query, way]``.

    A class without labelled items gets the least number that there is, and not −∞, of which 0 times is not a number.
    """
    member = one_hot(support_y, way, torch.bool)[:, None]  # [tasks, 1, support, way]
    return torch.where(member, scores[..., None], torch.finfo(scores.dtype).min).logsumexp(-2)


def log_counts(support_y: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """Logarithm of each class's number of labelled items, ``[tasks, support] -> [tasks, way]``; 0 for none, as for one."""
    return one_hot(support_y, way, dtype).sum(-2).clamp_min(1).log()
