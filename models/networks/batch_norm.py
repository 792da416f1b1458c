"""Batch norm by the statistics of the items at hand: the plain way to adapt a trained network to a new domain."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> list[Any]:
    """The network's batch norms that keep statistics."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


@contextmanager
def normed_by_tasks(network: nn.Module, tasks: int, share: float) -> Iterator[None]:
    """While the block runs, batch norms take ``share`` of mean and variance from each task's own items, and the rest from
    training. Nothing of the network changes; it is meant to be in evaluation mode.

    Sources: Li et al. 2017, "Revisiting batch normalization for practical domain adaptation" (``share`` 1); Schneider et al.
    2020, "Improving robustness against common corruptions by covariate shift adaptation", equation 1 (between).

    Args:
        network: called with the items of so many ``tasks``, equally many of each, one task after another.
        share: from 0 (the network as it is) to 1.
    """
    with ExitStack() as changed:
        for layer in batch_norms(network):
            layer.forward = functools.partial(normalised, layer, tasks=tasks, share=share)
            changed.callback(vars(layer).pop, "forward")
        yield


def normalised(layer: Any, x: Tensor, *, tasks: int, share: float) -> Tensor:
    """``layer(x)`` of items ``[tasks * n, channels, ...]``, with a ``share`` of each task's own statistics."""
    grouped = x.unflatten(0, (tasks, -1))
    dims = [1, *range(3, grouped.dim())]
    variance, mean = torch.var_mean(grouped, dim=dims, correction=0, keepdim=True)

    def along_channels(values: Tensor) -> Tensor:
        return values.view(1, 1, -1, *[1] * (x.dim() - 2))

    mean = torch.lerp(along_channels(layer.running_mean), mean, share)
    variance = torch.lerp(along_channels(layer.running_var), variance, share)
    factor = (variance + layer.eps).rsqrt()
    if layer.affine:
        factor = factor * along_channels(layer.weight)
    shift = -mean * factor if layer.bias is None else along_channels(layer.bias) - mean * factor
    return torch.addcmul(shift, grouped, factor).flatten(0, 1)
