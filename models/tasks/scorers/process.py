"""Conditional neural processes: the mean of what one network says of each support point, read at a query by another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.likelihoods import Likelihood
from models.tasks.scorers.base import Scorer, labelled_means

LEAST = 1e-3
"""Of a predicted standard deviation."""


class NeuralProcessScorer(Scorer):
    """(m, s)(x) = g([x, r]) with r = 1/n Σ_i h([x_i, y_i]): regression with two numbers for each query, the mean and what
    :class:`MeanAndScale` makes a standard deviation of.

    r of a support without points is 0. The order of the points does not matter, nor how often all of them are repeated.

    Source: Garnelo et al. 2018, "Conditional neural processes", equations 1 to 3.

    Args:
        num_features: numbers of an input.
        width: units of all layers.
        code: numbers of r.
        depth: hidden layers of h and of g.
    """

    def __init__(self, num_features: int, *, width: int = 64, code: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.encoder = perceptron((num_features + 1, *[width] * depth, code))
        self.decoder = perceptron((num_features + code, *[width] * depth, 2))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        """``[tasks, support, D], [tasks, support], [tasks, query, D] -> [tasks, query, 2]``; ``way`` is 1."""
        said = self.encoder(torch.cat([support_x, support_y[..., None]], dim=-1))
        code = said.sum(1) / max(1, support_x.shape[1])
        read = code[:, None].expand(-1, query_x.shape[1], -1)
        return self.decoder(torch.cat([query_x, read], dim=-1))


class ClassProcessScorer(Scorer):
    """logit_c = g([x, r_c, r]) with r_c the mean of h(x_i) over the support items of class c, and r that over all of them: the
    process of :class:`NeuralProcessScorer` for classes, of which there may be any number.

    A label there is a number that h reads. One-hot labels in its place would fix the number of classes, and predictions would
    depend on how classes are numbered. Here a label says which mean an item is part of, and h and g are the same for all
    classes: renaming these permutes the logits. Without a class's items r_c is 0; the order of items does not matter, nor how
    often all of them are repeated. A constant of all logits drops out, and the last layer has none.

    Source: Garnelo et al. 2018, "Conditional neural processes", equations 1 to 3, with one code for each class beside the code
    of all points.

    Args:
        num_features: D.
        width: units of all layers.
        code: numbers of each code.
        depth: hidden layers of h and of g.
    """

    def __init__(self, num_features: int, *, width: int = 64, code: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.encoder = perceptron((num_features, *[width] * depth, code))
        self.decoder = perceptron((num_features + 2 * code, *[width] * depth, 1), offset=False)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        said = self.encoder(support_x)
        of_class = labelled_means(said, support_y, way)  # [tasks, way, code]
        of_all = labelled_means(said, support_y.clamp_max(0), 1)  # [tasks, 1, code]
        codes = torch.cat([of_class, of_all.expand_as(of_class)], dim=-1)
        pairs = (*query_x.shape[:2], way, -1)
        return self.decoder(torch.cat([query_x[:, :, None].expand(pairs), codes[:, None].expand(pairs)], dim=-1)).squeeze(-1)


class MeanAndScale(Likelihood):
    """y ~ N(m, softplus(s)²), of two outputs (m, s) for each item: the spread is predicted, too."""

    outputs = 2

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Normal(outputs[..., 0], LEAST + F.softplus(outputs[..., 1]))


def perceptron(widths: Sequence[int], *, offset: bool = True) -> nn.Sequential:
    """Layers of these ``widths``, rectified but for the last, which has an ``offset`` or none."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=offset))
