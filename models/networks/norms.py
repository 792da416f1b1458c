"""What a network's batch norms take for mean and variance where each task has a batch of its own."""

from __future__ import annotations

import copy
import math
from enum import StrEnum
from typing import Any, TypeVar

from torch import nn
from torch.func import replace_all_batch_norm_modules_
from torch.nn.modules.batchnorm import _BatchNorm

Network = TypeVar("Network", bound=nn.Module)


class Norm(StrEnum):
    """Whose mean and variance the units of a batch-normed network are divided by."""

    RUNNING = "running"
    """The statistics that training has left, which no longer change: each item by itself."""
    TASK = "task"
    """Those of the items at hand, in evaluation too, as in the original code of MAML. Transductive: a prediction depends on the
    other queries of its task, or in few-shot learning on how many there are of each class."""
    GROUP = "group"
    """Those of a group of channels of one item (group norm; Wu and He 2018): each item by itself."""

    @property
    def is_transductive(self) -> bool:
        """Whether a query's prediction depends on the queries beside it."""
        return self is Norm.TASK


class RunningNorm(_BatchNorm):
    """Batch norm in evaluation mode for good: statistics never change, factor and shift are learned as ever."""

    def train(self, mode: bool = True) -> RunningNorm:
        """Stay in evaluation mode, whatever the ``mode``."""
        return super().train(False)

    def _check_input_dim(self, input: Any) -> None:
        """Any number of dimensions will do."""


def with_norm(network: Network, norm: Norm | str, *, groups: int = 8) -> Network:
    """A copy of a network whose batch norms take other statistics; their learned factors and shifts stay.

    Args:
        network: not changed. Layers that are no batch norms stay as they are.
        norm: whose statistics.
        groups: of channels, for ``group``; where the channels cannot be shared out among them, their greatest common divisor.

    Raises:
        ValueError: an unknown norm, or ``running`` of a batch norm that has kept no statistics.
    """
    norm, network = Norm(norm), copy.deepcopy(network)
    if norm is Norm.TASK:
        replace_all_batch_norm_modules_(network)
        return network
    made: dict[nn.Module, nn.Module] = {}  # a layer that stands in two places stays one layer
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if isinstance(layer, _BatchNorm):
            if layer not in made:
                made[layer] = running_norm(layer) if norm is Norm.RUNNING else group_norm(layer, groups)
            if not name:
                return made[layer]  # type: ignore[return-value]
            network.set_submodule(name, made[layer])
    return network


def running_norm(layer: Any) -> RunningNorm:
    """A batch norm's ``layer``, with its statistics as they are.

    Raises:
        ValueError: it has none.
    """
    if layer.running_mean is None:
        raise ValueError("this batch norm has kept no statistics of training: norm by `task` or `group`")
    made = RunningNorm(layer.num_features, layer.eps, layer.momentum, affine=False)
    made.affine, made.weight, made.bias = layer.affine, layer.weight, layer.bias
    for name, statistic in layer.named_buffers():
        setattr(made, name, statistic)
    return made.eval()


def group_norm(layer: Any, groups: int) -> nn.GroupNorm:
    """Group norm in place of a batch norm's ``layer``, with at most so many ``groups``."""
    made = nn.GroupNorm(math.gcd(groups, layer.num_features), layer.num_features, layer.eps, affine=False)
    made.affine, made.weight, made.bias = layer.affine, layer.weight, layer.bias
    return made


def mixes_items(network: nn.Module) -> bool:
    """Whether a batch norm of the network takes mean and variance of the items at hand, in evaluation mode too."""
    return any(isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in network.modules())


def keeps_statistics(network: nn.Module) -> bool:
    """Whether a layer of the network updates running statistics in training mode."""
    layers = (layer for layer in network.modules() if not isinstance(layer, RunningNorm))
    return any(getattr(layer, "track_running_stats", False) for layer in layers)
