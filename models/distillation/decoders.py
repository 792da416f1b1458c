"""Gaussian decoders q(t given s): what a student's layer s says about a teacher's layer t."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distributions.layer import LayerNormal

SMALLEST_VARIANCE = 1e-3


class GaussianDecoder(nn.Module):
    """q(t given s) = N(μ(s), σ²), σ² = softplus(α) + 10⁻³ with one α per unit or channel, whatever the input.

    With E over the data, H(t) + E log q(t given s) ≤ I(t; s). Source: Ahn et al. 2019, equations 2 to 4.

    Args:
        mean: the network μ, from student features to the teacher's shape.
        teacher_shape: ``[units]`` or ``[channels, height, width]``.
        variance: initial σ².
        spread: for a heteroscedastic decoder (beyond the paper): a network like ``mean`` that gives α(s), an offset to α.
    """

    def __init__(
        self, mean: nn.Module, teacher_shape: tuple[int, ...], *, variance: float = 5.0, spread: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.mean, self.spread = mean, spread
        shape = (teacher_shape[0], *(1 for _ in teacher_shape[1:]))
        self.alpha = nn.Parameter(alpha_of(torch.full(shape, variance)))

    @torch.no_grad()
    def ignore_student(self, teacher: Tensor) -> None:
        """Start close to the best decoder that ignores the student: N(mean, variance) of each unit or channel of ``teacher``.

        From here the bound on I(t; s) starts at about zero. Decoders that start at one σ for all channels are still on their
        way when a short training ends, for a step of Adam moves α by no more than its learning rate.
        """
        values = teacher.transpose(0, 1).flatten(1)
        last = [m for m in self.mean.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        last.weight.mul_(0.1)  # not 0: the student would get no gradient
        last.bias.copy_(values.mean(-1))  # type: ignore[union-attr]
        self.alpha.copy_(alpha_of(values.var(-1, correction=0)).view_as(self.alpha))

    def variance(self, student: Tensor) -> Tensor:
        """σ², ``[units]`` or ``[channels, 1, 1]``; heteroscedastic: ``[n, *teacher_shape]``."""
        alpha = self.alpha if self.spread is None else self.alpha + self.spread(student)
        return F.softplus(alpha.to(self.alpha.dtype)) + SMALLEST_VARIANCE

    def forward(self, student: Tensor) -> LayerNormal:
        """Student features ``[n, *student_shape]`` to a distribution of batch_shape ``[n]`` and event_shape
        ``teacher_shape``."""
        mean = self.mean(student).to(self.alpha.dtype)  # under autocast densities stay in full precision
        return LayerNormal(mean, self.variance(student))


def alpha_of(variance: Tensor) -> Tensor:
    """α with softplus(α) + 10⁻³ = ``variance``, as far as that is possible."""
    value = (variance - SMALLEST_VARIANCE).clamp_min(1e-4)
    return value + (-torch.expm1(-value)).log()  # log(exp(value) − 1) without overflow


class ResizeMaps(nn.Module):
    """Maps ``[n, channels, h, w]`` to another height and width, ``size``: averaged where they shrink, bilinear where they
    grow."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        if (height, width) == self.size:
            return maps
        if height >= self.size[0] and width >= self.size[1]:
            return F.adaptive_avg_pool2d(maps, self.size)
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)


def mean_network(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> nn.Sequential:
    """μ for any pair of layers, from features of ``student_shape`` to ``teacher_shape`` (both without the batch).

    * to a vector: linear; the student's maps are averaged over positions first (equation 3);
    * from maps to maps: two 1×1 convolutions with batch norm and ReLU between them, then resized (equation 4);
    * from a vector to maps: a linear map to all positions, batch norm and ReLU, then as above.

    Raises:
        ValueError: features that are neither vectors nor maps.
    """
    for owner, shape in (("student", student_shape), ("teacher", teacher_shape)):
        if len(shape) not in (1, 3):
            raise ValueError(f"the {owner}'s layer has shape {shape}: choose one with [units] or [channels, height, width]")
    if len(teacher_shape) == 1:
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if len(student_shape) == 3 else []
        return nn.Sequential(*pool, nn.Linear(student_shape[0], teacher_shape[0]))
    channels, height, width = teacher_shape
    spread: list[nn.Module] = []
    if len(student_shape) == 1:
        spread = [nn.Linear(student_shape[0], channels * height * width), nn.Unflatten(1, (channels, height, width))]
        spread += [nn.BatchNorm2d(channels), nn.ReLU()]
        student_shape = (channels, height, width)
    return nn.Sequential(
        *spread,
        nn.Conv2d(student_shape[0], channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        ResizeMaps((height, width)),
    )


def build_decoder(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], *, heteroscedastic: bool = False, variance: float = 5.0
) -> GaussianDecoder:
    """A decoder for a pair of layers, by :func:`mean_network`.

    Args:
        student_shape, teacher_shape: of the features, without the batch.
        heteroscedastic: σ² depends on the student's features; otherwise one per unit or channel.
        variance: σ² at the start.

    Raises:
        ValueError: features that are neither vectors nor maps.
    """
    spread = mean_network(student_shape, teacher_shape) if heteroscedastic else None
    if spread is not None:
        last = [m for m in spread.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)  # starts homoscedastic
        if last.bias is not None:
            nn.init.zeros_(last.bias)
    return GaussianDecoder(mean_network(student_shape, teacher_shape), teacher_shape, variance=variance, spread=spread)
