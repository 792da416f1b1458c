"""What the tests of β-BNN share: a small classification problem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.items import LabelledItems


def blobs(n: int = 200, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Points of Gaussian blobs in four dimensions, and their classes."""
    centers = 3 * nn.functional.normalize(torch.randn(classes, 4), dim=-1)
    y = torch.arange(n) % classes
    return centers[y] + torch.randn(n, 4), y


def items(n: int = 200, classes: int = 3) -> LabelledItems:
    """The same as a data set."""
    return LabelledItems(*blobs(n, classes), tuple(map(str, range(classes))))
