"""Gradient networks ξ: what stands in for ∂(−log p(y))/∂ŷ when the query labels are hidden.

Each maps predictor outputs ``[..., query, way]`` of whole tasks to a synthetic gradient of the same shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.task_model import Likelihood


class TaskNorm(nn.Module):
    """Batch norm over the queries of one task: ``[..., query, channels]``, in training and testing alike.

    No running statistics and no mixing across tasks, so results do not depend on how many tasks are batched together.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        normalised = F.layer_norm(hidden.mT, hidden.shape[-2:-1]).mT  # layer norm along the query axis
        return self.weight * normalised + self.bias


class MLPGradient(nn.Module):
    """The paper's ξ: a three-layer perceptron on the logits of one query, hidden size 8 · way.

    It has a fixed way and sees one query at a time (but for the norm). Source: Hu et al. 2019, section 3.

    Args:
        way: number of logits.
        hidden: units a hidden layer; ``None`` for 8 · way.
    """

    def __init__(self, way: int, hidden: int | None = None) -> None:
        super().__init__()
        self.way, width = way, hidden or 8 * way
        layers = [nn.Linear(way, width), nn.ReLU(), TaskNorm(width)]
        layers += [nn.Linear(width, width), nn.ReLU(), TaskNorm(width), nn.Linear(width, way)]
        self.layers = nn.Sequential(*layers)

    def forward(self, outputs: Tensor) -> Tensor:
        if outputs.shape[-1] != self.way:
            raise ValueError(
                f"this gradient network was built for {self.way} classes, the task has {outputs.shape[-1]}: "
                "train with the equivariant one to change the way"
            )
        return self.layers(outputs)


class EquivariantGradient(nn.Module):
    """One small perceptron shared by all classes, on features of each (query, class) pair: any way, any class order.

    It also sees how a class fares over the whole query set, so it can follow unequal class proportions. The features are
    log p, p, the query's entropy and largest probability, the class's mean probability over the task's queries and its
    logarithm, and log way.

    Args:
        hidden: units of the two hidden layers.
    """

    num_inputs = 7

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(self.num_inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def forward(self, outputs: Tensor) -> Tensor:
        return self.layers(pair_features(outputs))[..., 0]


def pair_features(logits: Tensor) -> Tensor:
    """What :class:`EquivariantGradient` sees of each (query, class) pair: ``[..., query, way] -> [..., query, way, 7]``."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1, keepdim=True).expand_as(p)
    largest = p.amax(-1, keepdim=True).expand_as(p)
    share = p.mean(-2, keepdim=True)
    log_way = torch.full_like(p, float(p.shape[-1])).log()
    features = [log_p / 4, p, entropy, largest, share.expand_as(p), share.clamp_min(1e-6).log().expand_as(p), log_way]
    return torch.stack(features, dim=-1)


class ExactGradient(nn.Module):
    """The true gradient in place of ξ, which needs the query labels: an upper reference that shows the amortization gap.

    Args:
        likelihood: supplies ∂(−log p(y given ŷ))/∂ŷ.
    """

    needs_labels = True

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            raise ValueError("the exact gradient needs the query labels: it is a reference, not a predictor")
        return self.likelihood.output_gradient(outputs, targets)
