"""Batch norm over the whole batch where several processes share it, on any device (torch's own needs a GPU)."""

from __future__ import annotations

import functools
from typing import Any

import lightning
import torch
import torch.distributed as group
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class SumOverProcesses(torch.autograd.Function):
    """Σ over processes of a tensor, in each of them; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        group.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient.contiguous())


class SharedBatchNorm(Callback):
    """While a model trains in several processes, its batch norms take mean and variance over the items of all of them."""

    def __init__(self) -> None:
        self.changed: list[_BatchNorm] = []

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.world_size > 1:
            self.changed = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        for layer in self.changed:
            layer.forward = functools.partial(normalise, layer)  # type: ignore[method-assign]

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        for layer in self.changed:
            vars(layer).pop("forward", None)
        self.changed = []


def normalise(layer: Any, x: Tensor) -> Tensor:
    """``layer(x)`` with the statistics of all processes' items; gradients flow through them, as in one process."""
    if not layer.training:
        return type(layer).forward(layer, x)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    count = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
    group.all_reduce(count)
    mean = SumOverProcesses.apply(x.sum(dims)) / count
    centred = x - along_channels(mean, x)
    variance = SumOverProcesses.apply(centred.square().sum(dims)) / count
    if layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            momentum = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
            layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), momentum)
    normal = centred * along_channels((variance + layer.eps).rsqrt(), x)
    if not layer.affine:
        return normal
    return normal * along_channels(layer.weight, x) + along_channels(layer.bias, x)


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """``[channels]`` values, to be broadcast against ``x``."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))
