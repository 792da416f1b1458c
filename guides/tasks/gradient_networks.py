"""Gradient networks ξ: what stands in for ∂(−log p(y))/∂ŷ when the query labels are hidden.

Each maps predictor outputs ``[..., query, way]`` of whole tasks, and labels where it reads any, to a gradient of the same
shape. Predictors keep the queries of a class side by side in memory, and so do these: inside they work on
``[..., way, query]``, with hidden units in front, so that a layer is one matrix product and sums run along memory.
"""

from __future__ import annotations

import math
from typing import Any

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
    are batched together. As layers over ``[tasks, channels, query]`` these are convolutions of width one and instance norms;
    they are computed on all tasks at once, ``[channels, tasks · query]``, each norm's factor and shift as part of the layer
    after it. Source: Hu et al. 2019, section 3.

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
        queries = outputs.shape[-2]
        parts: tuple[Any, ...] = tuple(self.layers)
        first, _, first_norm, second, _, second_norm, last = parts
        hidden = columns(first, outputs.movedim(-1, 0).flatten(1)).relu_()  # [channels, tasks · query]
        hidden = columns(second, over_queries(first_norm, hidden, queries), first_norm).relu_()
        hidden = columns(last, over_queries(second_norm, hidden, queries), second_norm)
        return hidden.unflatten(1, outputs.shape[:-1]).movedim(0, -1)


def columns(layer: Any, inputs: Tensor, norm: nn.InstanceNorm1d | None = None) -> Tensor:
    """W x + b of a linear ``layer`` for each column x of the ``inputs``, ``[units, n]``.

    Args:
        norm: whose learned factor and shift of each unit come before the layer.
    """
    weight, bias = layer.weight.flatten(1), layer.bias
    if norm is not None:
        weight, bias = weight * norm.weight, torch.addmv(bias, weight, norm.bias)
    return torch.addmm(bias[:, None], weight, inputs)


def over_queries(norm: nn.InstanceNorm1d, units: Tensor, queries: int) -> Tensor:
    """Units ``[units, tasks · query]``, each of mean 0 and variance 1 over the ``queries`` of each task; the ``norm``'s factor
    and shift are left to :func:`columns`."""
    return F.layer_norm(units.unflatten(1, (-1, queries)), (queries,), eps=norm.eps).flatten(1)


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
        log_p = outputs.mT.log_softmax(-2)  # [..., way, query]
        p = log_p.exp()
        tilt, weight, *pull = self.perceptron(log_p, p)
        soft_label = (log_p + 4 * tilt).softmax(-2)
        gradient = F.softplus(weight.mean(-2, keepdim=True)) * (p - soft_label)
        if self.drawn:
            gradient = gradient - F.softplus(pull[0] - 2) * soft_label
        return gradient.mT

    def perceptron(self, log_p: Tensor, p: Tensor) -> Tensor:
        """(s, u, v) of each pair, ``[outputs, ..., way, query]``, from its log-probability ``log_p`` and probability ``p``,
        ``[..., way, query]``."""
        parts: tuple[Any, ...] = tuple(self.layers)
        first, _, second, _, last = parts
        weight, bias = first.weight[:, :NUM_PAIR_FEATURES], first.bias
        if self.counted:  # equal for all pairs, so part of the bias
            for number, column in zip(task_features(*p.shape[-2:]), first.weight.T[NUM_PAIR_FEATURES:], strict=True):
                bias = torch.add(bias, column, alpha=number)
        hidden = torch.addmm(bias[:, None], weight, pair_features(log_p, p).flatten(1)).relu_()
        return columns(last, columns(second, hidden).relu_()).unflatten(1, p.shape)


NUM_PAIR_FEATURES, NUM_TASK_FEATURES = 6, 2


def task_features(way: int, queries: int) -> tuple[float, ...]:
    """What :class:`EquivariantGradient` sees of a task of ``way`` classes and so many ``queries``, the same for each pair.

    Logarithms of the way and of the number of queries per class, between −½ and about ½ for 1 to 20.
    """
    return tuple(math.log(n) / 3 - 0.5 for n in (way, queries / way))


def pair_features(log_p: Tensor, p: Tensor) -> Tensor:
    """What :class:`EquivariantGradient` sees of each (query, class) pair: ``[..., way, query] -> [6, ..., way, query]``.

    Log-probability ``log_p`` and probability ``p`` of the class, entropy and largest probability of the query, the class's mean
    probability over the task's queries and its logarithm; log-probability, entropy and mean are relative to their value at
    1/way.
    """
    way = p.shape[-2]
    entropy = (p * log_p).sum(-2, keepdim=True) * (-1 / math.log(way))
    share = p.mean(-1, keepdim=True) * way
    per_query = (entropy, p.amax(-2, keepdim=True))
    per_class = (share, share.clamp_min(1e-4).log())
    return torch.stack([(log_p + math.log(way)) / 4, p, *(f.expand_as(p) for f in (*per_query, *per_class))])


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
