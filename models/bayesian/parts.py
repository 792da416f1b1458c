"""A vector of weights as the parameters of a network, and their gradients as one vector, without a copy of either."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.distributions.diagonal import GaussianWeights, Place


class Gradient:
    """The gradient of vectors ``[..., P]``, with a place for that of each of their parts.

    Args:
        vector: whose gradient it is.
        shapes: of the parts, in order.

    Attributes:
        places: a function for each part, which gives where its gradient belongs, not written yet.
    """

    def __init__(self, vector: Tensor, shapes: Sequence[torch.Size]) -> None:
        self.like, self.shapes = vector.detach(), shapes
        self.places: tuple[Place, ...] = tuple(functools.partial(self.part, i) for i in range(len(shapes)))
        self.vector: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()

    def part(self, index: int) -> Tensor:
        """The place of the part with this ``index``."""
        if self.vector is None:  # one for each backward pass
            self.vector = torch.empty_like(self.like, memory_format=torch.contiguous_format)
            self.parts = parts_of(rows_of(self.vector), self.shapes)
        return self.parts[index]

    def collect(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The whole of it: ``gradients`` of the parts that are elsewhere are copied to their places."""
        self.part(0)
        for place, gradient in zip(self.parts, gradients, strict=True):
            if gradient is None:
                place.zero_()
            elif gradient is not place:
                place.copy_(gradient)
        whole, self.vector, self.parts = self.vector, None, ()  # whoever gets it may keep it
        assert whole is not None
        return whole


class Parts(torch.autograd.Function):
    """The parts ``[S, *shape]`` of S vectors ``[..., P]``, or ``[*shape]`` where S = 1, for whose gradients ``gradient`` has
    places."""

    @staticmethod
    def forward(ctx, vector: Tensor, gradient: Gradient) -> tuple[Tensor, ...]:
        ctx.gradient = gradient
        ctx.set_materialize_grads(False)
        return parts_of(rows_of(vector), gradient.shapes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients: Tensor | None):
        return ctx.gradient.collect(gradients), None


def parts_of(vectors: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """Views ``[..., *shape]`` of ``vectors`` ``[..., P]``, one for each of ``shapes``."""
    parts = vectors.split([shape.numel() for shape in shapes], dim=-1)
    return tuple(part.unflatten(-1, shape) if shape else part[..., 0] for part, shape in zip(parts, shapes, strict=True))


def rows_of(vectors: Tensor) -> Tensor:
    """``[..., P]`` as ``[S, P]``, or ``[P]`` where S = 1."""
    return vectors.reshape(-1, vectors.shape[-1]).squeeze(0)


def named_parts(weights: GaussianWeights, shapes: Mapping[str, torch.Size]) -> dict[str, GaussianWeights]:
    """S ``weights`` ``[..., P]`` as the parameters whose ``shapes`` are given by name, ``[S, *shape]``, or ``[*shape]`` where
    S = 1, each with the places of its gradients."""
    tensors = (weights.loc, weights.variance)
    gradients = [Gradient(tensor, tuple(shapes.values())) for tensor in tensors]
    locs, variances = (Parts.apply(tensor, own) for tensor, own in zip(tensors, gradients, strict=True))
    places = zip(*(own.places for own in gradients), strict=True)
    return {name: GaussianWeights(*all_of) for name, *all_of in zip(shapes, locs, variances, places, strict=True)}
