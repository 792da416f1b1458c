"""Parts of a network that do not learn: batch norm with the statistics it has, and layers whose weights are constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

Module = TypeVar("Module", bound=nn.Module)


def freeze_batch_norm(network: Module) -> Module:
    """Replace every two-dimensional batch norm of ``network``, in place, by torchvision's ``FrozenBatchNorm2d`` of the same
    weights and statistics; the network itself must be none."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
            state = {key: value for key, value in module.state_dict().items() if key != "num_batches_tracked"}
            ones, zeros = torch.ones(module.num_features), torch.zeros(module.num_features)
            frozen.load_state_dict({"weight": ones, "bias": zeros} | state)
            network.set_submodule(name, frozen)
    return network


def freeze(network: Module, chosen: Callable[[str], bool] | None = None) -> Module:
    """Make every parameter of ``network``, in place, a buffer: it is saved and moved, and nothing learns it.

    Args:
        chosen: which parameters, by name; all when not given. One of several names goes by the first, and keeps them all.
    """
    constants = {p: p.detach() for name, p in network.named_parameters() if chosen is None or chosen(name)}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter in constants:
                delattr(module, name)
                module.register_buffer(name, constants[parameter])
    return network


def keep_start(network: Module) -> Module:
    """Mark the layers of ``network``: each of several posteriors starts at the weights that they have, none at random ones."""
    for module in network.modules():
        module.keeps_start = True  # type: ignore[assignment]
    return network
