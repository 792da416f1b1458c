"""Conditional neural processes: the mean of what one network says of each support point, read at a query by another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.likelihoods import Likelihood
from models.tasks.scorers.base import Scorer

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


class MeanAndScale(Likelihood):
    """y ~ N(m, softplus(s)²), of two outputs (m, s) for each item: the spread is predicted, too."""

    outputs = 2

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Normal(outputs[..., 0], LEAST + F.softplus(outputs[..., 1]))


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Layers of these ``widths``, rectified but for the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
