"""Gradient networks ξ: what stands in for ∂(−log p(y))/∂ŷ when the query labels are hidden.

Each maps predictor outputs ``[..., query, way]`` of whole tasks, and labels where it reads any, to a gradient of the same
shape.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.likelihoods import Likelihood


class GradientNetwork(nn.Module):
    """Base class: outputs ``[..., query, way]`` and labels ``[..., query]`` (``None``: hidden) to a gradient of the outputs'
    shape.

    Attributes:
        needs_labels: whether it reads the labels.
    """

    needs_labels: bool = False

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class MLPGradient(GradientNetwork):
    """The paper's ξ: a three-layer perceptron on the logits of one query, hidden size 8 · way, with batch norm.

    It has a fixed way and sees one query at a time, but for the norm. That is taken over the queries of one task, in training
    and testing alike, without running statistics: tasks do not leak into each other, and results do not depend on how many
    are batched together. As layers over ``[tasks, channels, query]`` these are convolutions of width one and instance norms.
    Source: Hu et al. 2019, section 3.

    Args:
        way: number of logits.
        hidden: units a hidden layer; ``None`` for 8 · way.

    Raises:
        ValueError: in a call: another way, or one query alone.
    """

    def __init__(self, way: int, hidden: int | None = None) -> None:
        super().__init__()
        self.way, width = way, hidden or 8 * way
        layers = [nn.Conv1d(way, width, 1), nn.ReLU(), nn.InstanceNorm1d(width, affine=True)]
        layers += [nn.Conv1d(width, width, 1), nn.ReLU(), nn.InstanceNorm1d(width, affine=True), nn.Conv1d(width, way, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        if outputs.shape[-1] != self.way:
            raise ValueError(
                f"this gradient network was built for {self.way} classes, the task has {outputs.shape[-1]}: "
                "train with the equivariant one to change the way"
            )
        if outputs.shape[-2] < 2:
            raise ValueError("this gradient network normalises over a task's queries: it needs at least two of them")
        return self.layers(outputs.mT.flatten(0, -3)).mT.reshape(outputs.shape)


class EquivariantGradient(GradientNetwork):
    """One small perceptron shared by all classes, on features of each (query, class) pair: any way, any class order.

    It has the form of a true gradient, that of −a log p(y given x) − b log p(x, y) for predictors whose outputs are logarithms
    of p(x, y), with the hidden label y replaced by a soft one that it predicts,

        ξ_ic = a_i (p_ic − t_ic) − b_ic t_ic,    t_i = softmax_c(log p_ic + 4 s_ic),    a_i = softplus(mean_c u_ic),

    b_ic = softplus(v_ic − 2), where (s, u, v) is the perceptron's output for the pair. The first term tells classes apart; its
    sum over classes is zero. The second draws a class's weights to the queries that are taken for its own: the M-step in a
    mixture of Gaussians around the weights, where t are the responsibilities.

    The features, :func:`pair_features`, tell how a class fares over the whole query set, so that t can follow unequal class
    proportions, and are relative to the way: a free-form output on absolute features fits 5-way tasks as well but fails on
    20-way ones. How many classes and queries there are, :func:`task_features`, says how far proportions are to be trusted.

    Args:
        hidden: units of the two hidden layers.
        counted: whether it sees the numbers of classes and queries; guides of versions before 0.5 do not.
        drawn: whether there is the second term; guides of versions before 0.5 have the first alone.
    """

    def __init__(self, hidden: int = 32, *, counted: bool = True, drawn: bool = True) -> None:
        super().__init__()
        self.counted, self.drawn = counted, drawn
        inputs = NUM_PAIR_FEATURES + (NUM_TASK_FEATURES if counted else 0)
        outputs = 3 if drawn else 2
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        features = pair_features(outputs)
        if self.counted:
            features = torch.cat([features, task_features(outputs)], dim=-1)
        tilt, weight, *pull = self.layers(features).unbind(-1)
        log_p = outputs.log_softmax(-1)
        soft_label = (log_p + 4 * tilt).softmax(-1)
        gradient = F.softplus(weight.mean(-1, keepdim=True)) * (log_p.exp() - soft_label)
        return gradient - F.softplus(pull[0] - 2) * soft_label if self.drawn else gradient


NUM_PAIR_FEATURES, NUM_TASK_FEATURES = 6, 2


def task_features(logits: Tensor) -> Tensor:
    """What :class:`EquivariantGradient` sees of the task, the same for each pair: ``[..., query, way]`` to ``[…, 2]``.

    Logarithms of the way and of the number of queries per class, between −½ and about ½ for 1 to 20.
    """
    queries, way = logits.shape[-2:]
    return torch.stack([torch.full_like(logits, math.log(n) / 3 - 0.5) for n in (way, queries / way)], dim=-1)


def pair_features(logits: Tensor) -> Tensor:
    """What :class:`EquivariantGradient` sees of each (query, class) pair: ``[..., query, way] -> [..., query, way, 6]``.

    Log-probability and probability of the class, entropy and largest probability of the query, the class's mean probability
    over the task's queries and its logarithm; log-probability, entropy and mean are relative to their value at 1/way.
    """
    log_way = math.log(logits.shape[-1])
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1, keepdim=True) / log_way
    share = p.mean(-2, keepdim=True) * logits.shape[-1]
    per_query = (entropy, p.amax(-1, keepdim=True))
    per_class = (share, share.clamp_min(1e-4).log())
    features = [(log_p + log_way) / 4, p, *(f.expand_as(p) for f in (*per_query, *per_class))]
    return torch.stack(features, dim=-1)


class LabelledGradient(GradientNetwork):
    """The gradient of −a log p(y given x) − b log p(x, y) for items whose labels are known, with learned a and b > 0:

        v_ic = a (p_ic − y_ic) − b y_ic.

    On the support it holds weights that move with the queries to what is known for certain, so that more steps do not lose it.
    The start at the support's class means is where the second term alone would end.

    Raises:
        ValueError: in a call: items without labels.
    """

    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([-2.0, 0.0]))  # of a and b, before softplus: 0.13 and 0.69

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("this gradient network needs labels: it is for the support")
        apart, drawn = F.softplus(self.weights)
        known = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
        return apart * (outputs.softmax(-1) - known) - drawn * known


class ResidualGradient(GradientNetwork):
    """ξ for regression: the residual of each labelled item, weighted by a small perceptron,

        ξ_i = a_i (ŷ_i − y_i),    a_i = softplus(u(|ŷ_i − y_i|, mean_j |ŷ_j − y_j|, |ŷ_i|, |y_i|)).

    With a Gaussian likelihood the true gradient is one of these, a = 1/noise². It knows neither likelihood nor noise, and it is
    odd: turning the sign of outputs and labels turns the sign of ξ. Items without labels have no residual: this is for steps on
    the support.

    Args:
        hidden: units of the hidden layer.

    Raises:
        ValueError: in a call: items without labels.
    """

    needs_labels = True

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("this gradient network reads residuals: take the steps on the support, whose labels are known")
        residual = outputs - labels[..., None]
        size = residual.abs()
        seen = (size, size.mean(-2, keepdim=True), outputs.abs(), labels[..., None].abs())
        features = torch.stack([f.expand_as(size) for f in seen], dim=-1).log1p()
        return F.softplus(self.layers(features)[..., 0]) * residual


class ExactGradient(GradientNetwork):
    """The true gradient in place of ξ, which needs the query labels: an upper reference that shows the amortization gap.

    Args:
        likelihood: supplies ∂(−log p(y given ŷ))/∂ŷ.

    Raises:
        ValueError: in a call: items without labels.
    """

    needs_labels = True

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("the exact gradient needs the labels of the items it is taken on: on queries it is a reference")
        return self.likelihood.output_gradient(outputs, labels)
