"""Predictors ŷ(x, w): from features and task weights to logits or a mean, and the pull-back of their gradient.

Shapes: features ``[..., query, D]``, weights ``[..., way, D]``, outputs and cotangents ``[..., query, way]``. In memory the
queries of a class lie side by side: what is summed over queries or done to each is then quick.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distributions.mirrored import Mirrored
from models.parameters import declare

OUTPUTS = {"outputs", "mirrored_outputs", "linearised"}
"""Methods that say what a predictor's outputs are."""


class Predictor(nn.Module):
    """Base class: subclasses write :meth:`outputs`; :meth:`pull_back` is then generic, through ``torch.func.vjp``.

    A subclass with a closed form overrides :meth:`pull_back`; the tests hold one against the other.
    """

    def forward(self, features: Tensor, weights: Tensor | Mirrored) -> Tensor:
        """``[..., query, D], [..., way, D] -> [..., query, way]``"""
        prepared = self.prepare(features)
        if not isinstance(weights, Mirrored):
            return self.outputs(prepared, weights)
        return self.mirrored_outputs(prepared, weights)

    def rows(self, way: int) -> int:
        """Rows of the weights of a task with ``way`` outputs: one per class, unless a subclass says otherwise."""
        return way

    def prepare(self, features: Tensor) -> Tensor:
        """What can be done once for features that meet several weights; :meth:`outputs` and :meth:`pull_back` take this."""
        return features

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        """:meth:`forward` on prepared features and class weights, the ``weights``."""
        raise NotImplementedError

    def mirrored_outputs(self, features: Tensor, weights: Mirrored) -> Tensor:
        """:meth:`outputs` of all draws, ``[2 · pairs, ..., query, way]``, on prepared features. Written where it is quicker."""
        raise NotImplementedError

    def pull_back(self, features: Tensor, weights: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_i v_i ∂ŷ_i/∂w, the middle factor of the synthetic gradient: ``[..., query, way] -> [..., way, D]``.

        Source: Hu et al. 2019, equation 9.
        """
        return Predictor.generic_pull_back(self, features, weights, cotangent)

    def mean_outputs(self, features: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
        """E ŷ under independent Gaussian weights with the means ``weights`` and the ``variance``, on prepared features: exact
        or, of outputs that are not linear in what is drawn, near; :meth:`outputs` at the means unless a subclass knows better.
        """
        return self.outputs(features, weights)

    def mean_pull_back(self, features: Tensor, weights: Tensor, variance: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_i v_i ∂(E ŷ_i)/∂w, w the means: features, weights and variance as in :meth:`mean_outputs`, v the ``cotangent``."""
        return self.pull_back(features, weights, cotangent)

    def linearised(
        self, features: Tensor, weights: Tensor, variance: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Outputs at the ``weights`` and their pull-back, a function of the cotangent: one place for what both need. With a
        ``variance`` these are :meth:`mean_outputs` and its pull-back, without one :meth:`outputs`; features as there."""
        if variance is None:
            return self.outputs(features, weights), partial(self.pull_back, features, weights)
        return self.mean_outputs(features, weights, variance), partial(self.mean_pull_back, features, weights, variance)

    def generic_pull_back(self, features: Tensor, weights: Tensor, cotangent: Tensor) -> Tensor:
        """The same (features, weights and cotangent as in :meth:`pull_back`) by reverse-mode differentiation of
        :meth:`outputs`, for any predictor."""
        vjp = torch.func.vjp(lambda w: self.outputs(features, w), weights)[1]
        return vjp(cotangent)[0]


class ScaledPredictor(Predictor):
    """Base of predictors with a learned positive factor, the inverse temperature; learned on the log scale."""

    log_scale: Tensor
    logarithms: ClassVar = ("log_scale",)

    @property
    def scale(self) -> Tensor:
        """The positive factor of all outputs, learned."""
        return self.log_scale.exp()

    @torch.no_grad()
    def flatten(self) -> None:
        """Make all outputs 0, whatever the weights: the probabilities of all classes are then equal."""
        self.log_scale.fill_(-torch.inf)


class CosinePredictor(ScaledPredictor):
    """logits = scale · (cos(f, w) + bias), with learned scale and bias.

    Invariant to the length of ``w``. Source: Gidaris and Komodakis 2018, section 3.2.
    """

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(0.0))

    def prepare(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        return self.linearised(features, weights)[0]

    def mirrored_outputs(self, features: Tensor, weights: Mirrored) -> Tensor:
        per_length = self.scale / weights.squares().clamp_min(1e-24).sqrt()
        products = mirrored_products(features, weights)
        return torch.addcmul(self.scale * self.bias, products, per_length[..., None, :], out=products)

    def pull_back(self, features: Tensor, weights: Tensor, cotangent: Tensor) -> Tensor:
        return self.linearised(features, weights)[1](cotangent)

    def mean_outputs(self, features: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
        """Draws are longer than their mean, ‖w‖² = ‖μ‖² + Σ_d σ_d² on average, so their cosines are smaller: by that length."""
        return self.linearised(features, weights, variance)[0]

    def mean_pull_back(self, features: Tensor, weights: Tensor, variance: Tensor, cotangent: Tensor) -> Tensor:
        """As :meth:`pull_back`, with the length of :meth:`mean_outputs`."""
        return self.linearised(features, weights, variance)[1](cotangent)

    def linearised(
        self, features: Tensor, weights: Tensor, variance: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Closed form of the pull-back: s (Σ_i v_ic f̂_i − ŵ_c Σ_i v_ic cos(f_i, w_c)) / ‖w_c‖; the length ‖w_c‖ is that of
        :meth:`mean_outputs` where there is a ``variance``."""
        scale, per_length = self.scale, length_of(weights, variance).reciprocal()
        unit_weights = weights * per_length

        def pull_back(cotangent: Tensor) -> Tensor:
            ascent = row_products(cotangent.mT, features)  # [..., way, D]
            radial = (ascent * unit_weights).sum(-1, keepdim=True)  # Σ_i v_ic cos(f_i, w_c)
            return scale * per_length * (ascent - radial * unit_weights)

        return inner_products(features, scale * unit_weights) + scale * self.bias, pull_back


def length_of(weights: Tensor, variance: Tensor | None = None) -> Tensor:
    """Root mean squared length of Gaussian weights of these means and ``variance``, ``None`` for 0:
    ``[..., way, D] -> [..., way, 1]``."""
    if variance is None:
        return torch.linalg.vector_norm(weights, dim=-1, keepdim=True).clamp_min(1e-12)
    return (weights.square() + variance).sum(-1, keepdim=True).sqrt().clamp_min(1e-12)


class DistancePredictor(ScaledPredictor):
    """logits = scale · (⟨f, w⟩ − ½‖w‖²): the squared distance to a prototype, up to a term equal for all classes.

    Source: Snell et al. 2017, section 2.4.
    """

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        return self.scale * (inner_products(features, weights) - 0.5 * weights.square().sum(-1)[..., None, :])

    def mirrored_outputs(self, features: Tensor, weights: Mirrored) -> Tensor:
        half = (0.5 * self.scale) * weights.squares()
        return mirrored_products(self.scale * features, weights).sub_(half[..., None, :])

    def mean_outputs(self, features: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
        """Exact: E ‖w‖² = ‖μ‖² + Σ_d σ_d²; the gradient for the means is that of :meth:`outputs`."""
        half = 0.5 * (weights.square() + variance).sum(-1)
        return self.scale * (inner_products(features, weights) - half[..., None, :])

    def pull_back(self, features: Tensor, weights: Tensor, cotangent: Tensor) -> Tensor:
        """Closed form: s (Σ_i v_ic f_i − w_c Σ_i v_ic)."""
        return self.scale * (row_products(cotangent.mT, features) - weights * cotangent.mT.sum(-1, keepdim=True))


class LinearPredictor(ScaledPredictor):
    """ŷ = scale · ⟨f, w⟩; with a fixed scale of 1 it is the mean of linear regression.

    Args:
        scale: initial (or, with ``learned=False``, fixed) factor.
    """

    def __init__(self, scale: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        declare(self, "log_scale", torch.tensor(scale).log(), learned=learned)

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        return self.scale * inner_products(features, weights)

    def mirrored_outputs(self, features: Tensor, weights: Mirrored) -> Tensor:
        return mirrored_products(self.scale * features, weights)

    def pull_back(self, features: Tensor, weights: Tensor, cotangent: Tensor) -> Tensor:
        """Closed form: s Σ_i v_ic f_i."""
        return self.scale * row_products(cotangent.mT, features)


def takes_mirrored(predictor: nn.Module) -> bool:
    """Whether a ``predictor`` has outputs of mirrored draws, and nothing about its call expects weights that are a tensor: no
    ``forward`` or outputs of a user's own, and no hooks."""
    if getattr(type(predictor), "forward", None) is not Predictor.forward or vars(predictor).keys() & {"forward", *OUTPUTS}:
        return False
    said = (vars(kind).keys() & OUTPUTS for kind in type(predictor).__mro__)  # a parent's may be of other outputs
    mirrored = "mirrored_outputs" in next(names for names in said if names)
    return mirrored and not (predictor._forward_hooks or predictor._forward_pre_hooks)


def inner_products(features: Tensor, weights: Tensor) -> Tensor:
    """⟨f_i, w_c⟩: ``[..., query, D], [..., way, D] -> [..., query, way]``, where the weights may have more leading dimensions
    than the features; see :func:`row_products`."""
    return row_products(weights, features.mT).mT


def mirrored_products(features: Tensor, weights: Mirrored) -> Tensor:
    """:func:`inner_products` of all draws, ``[2 · pairs, ..., query, way]``, in memory in the order of their dimensions but for
    the last two."""
    return weights.each(lambda part: row_products(part, features.mT)).mT


def row_products(rows: Tensor, matrix: Tensor) -> Tensor:
    """``[draws..., ..., r, n] @ [..., n, m] -> [draws..., ..., r, m]``.

    Leading dimensions that the ``matrix`` lacks, such as draws, become more rows of one product, which reads the matrix once:
    broadcasting would copy it for every draw.
    """
    extra = rows.dim() - matrix.dim()
    if extra <= 0:
        plain = rows.dim() == matrix.dim() == 3 and len(rows) == len(matrix)
        return torch.bmm(rows, matrix) if plain else rows @ matrix  # which would expand and view first
    front, inside = tuple(range(extra)), tuple(range(-2 - extra, -2))
    folded = rows.movedim(front, inside)  # [..., draws..., r, n]
    product = folded.flatten(-2 - extra, -2) @ matrix
    return product.unflatten(-2, folded.shape[-2 - extra : -1]).movedim(inside, front)


class PerceptronPredictor(Predictor):
    """ŷ = a perceptron under one row of weights, ``[..., tasks, 1, P]``, written as batched matrix products.

    The same function as :class:`~models.tasks.network_predictor.NetworkPredictor` on ``nn.Sequential(nn.Linear(a, b),
    nn.Tanh(), …)``, with the weights in the same order, but without ``vmap``: it is quicker, and ``torch.jit.trace`` can
    follow, so that NUTS may compile the potential.

    Args:
        widths: of inputs, hidden layers and outputs, such as ``(1, 20, 1)``.
        activation: of the hidden units.

    Attributes:
        num_weights: P.
    """

    def __init__(self, widths: Sequence[int], activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.activation = activation
        self.shapes = list(itertools.pairwise(widths))
        self.num_weights = sum((inputs + 1) * outputs for inputs, outputs in self.shapes)

    def rows(self, way: int) -> int:
        """1: the network is one row."""
        return 1

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        parts = weights.split([n for a, b in self.shapes for n in (a * b, b)], dim=-1)  # [..., 1, n]
        for layer, (inputs, outputs) in enumerate(self.shapes):
            matrix = parts[2 * layer].unflatten(-1, (outputs, inputs)).squeeze(-3)  # [..., outputs, inputs]
            features = (self.activation(features) if layer else features) @ matrix.mT + parts[2 * layer + 1]
        return features


PREDICTORS: dict[str, type[Predictor]] = {
    "cosine": CosinePredictor,
    "distance": DistancePredictor,
    "linear": LinearPredictor,
}
"""Names of ``--predictor``."""
