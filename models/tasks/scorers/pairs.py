"""Siamese networks: are two items of the same class?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.tasks.scorers.base import Scorer, log_counts, log_sums


class PairScorer(Scorer):
    """logit of "x₁ and x₂ are of one class" = Σ_j a_j |h_j(x₁) − h_j(x₂)| + b, of which class logits follow by Bayes' rule.

    It is trained on pairs (:meth:`same`, a Bernoulli model) or on tasks. Let s_i be the probability that the query and support
    item i are of one class, each pair seen by itself. If that is so of exactly one of them, and of each as likely as of any
    other, then P(i) ∝ s_i / (1 − s_i) = exp(logit_i): the softmax of the pairs' logits. Where a class has several items, one of
    them, and any as likely as another, stands for it: P(c) ∝ (1/n_c) Σ_{i: y_i = c} exp(logit_i), the mean of the odds. Copies
    of all of a class's items then change nothing, and for large −a the nearest item wins. Of classes, b drops out.

    Source: Koch et al. 2015, "Siamese neural networks for one-shot image recognition", section 3.1: h is the
    last layer, sigmoid, of 4096 units. It takes the class with the largest s_i, which has the largest P(i).

    Args:
        num_features: D.
        width: of h = sigmoid(linear map); when not given, features are what h gives.
    """

    def __init__(self, num_features: int, *, width: int | None = None) -> None:
        super().__init__()
        self.embedding: nn.Module = nn.Identity()
        if width is not None:
            self.embedding = nn.Sequential(nn.Linear(num_features, width), nn.Sigmoid())
        self.weights = nn.Parameter(-torch.ones(num_features if width is None else width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        logits = self.compare(self.embedding(query_x)[:, :, None], self.embedding(support_x)[:, None])
        return log_sums(logits, support_y, way) - log_counts(support_y, way, logits.dtype)[:, None]

    def same(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits of "of one class", ``[..., D], [..., D] -> [...]``."""
        return self.compare(self.embedding(first), self.embedding(second))

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """:meth:`same` of what h gave, ``[..., width], [..., width] -> [...]``, which may be broadcast."""
        return (first - second).abs() @ self.weights + self.bias
