"""Chains of ordinary layers under many weight vectors at once: what each vector sees is a group of channels.

The same as ``torch.func.vmap`` of the chain. That moves the vectors back and forth between the layers, and takes factors and
shifts of a batch norm out of it: here maps stay as they are from layer to layer, and a norm is one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.backbones import Standardize
from models.networks.norms import RunningNorm

Chain = Sequence[tuple[str, nn.Module]]
"""Layers in order, by name."""


def chain_of(network: nn.Module, name: str = "") -> Chain | None:
    """The layers of a network of nested ``nn.Sequential``, with their names behind the network's ``name``; ``None`` where it
    does anything else, or somebody listens to a part of it."""
    if network._forward_hooks or network._forward_pre_hooks or "forward" in vars(network):
        return None
    if not isinstance(network, nn.Sequential):
        return [(name, network)] if type(network) in KNOWN else None
    if type(network).forward is not nn.Sequential.forward:
        return None
    parts = [chain_of(part, f"{name}{number}.") for number, part in network._modules.items() if part is not None]
    return None if any(part is None for part in parts) else [layer for part in parts for layer in part or ()]


def fits(chain: Chain, item_dims: int) -> bool:
    """Whether :func:`run` has a rule for each layer where it stands: maps first, and vectors after they are flattened.

    Args:
        chain: of known layers.
        item_dims: of an item, 3 for images and 1 for vectors.
    """
    begun = False
    for _, layer in chain:
        kind = type(layer)
        if kind is nn.Flatten:
            if (layer.start_dim, layer.end_dim) != (1, -1):
                return False
            item_dims = 1
        begun = begun or kind in MAPS
        wanted = 3 if kind in MAPS else 1 if kind is nn.Linear else item_dims
        turned = kind is nn.Conv2d and layer.padding_mode != "zeros"
        if item_dims != wanted or turned or (begun and kind is Standardize):
            return False
    return True


def run(chain: Chain, parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The chain under S weight vectors.

    Args:
        chain: that :func:`fits`.
        parts: parameters by name, ``[S, *shape]``; those that are not there are the layers' own, for all vectors.
        x: ``[S, n, *item]``.

    Returns:
        ``[S, n, ...]``.
    """
    vectors, wide = len(x), False  # wide: [n, S · channels, height, width]

    def given(name: str, layer: nn.Module, kind: str) -> Tensor | None:
        """A parameter of all vectors, ``[S, *shape]``, which the layer may do without."""
        own = getattr(layer, kind, None)
        found = parts.get(name + kind, own)
        return found if found is None or name + kind in parts else found.expand(vectors, *found.shape)

    for name, layer in chain:
        kind = type(layer)
        if kind in MAPS and not wide:
            x, wide = x.transpose(0, 1).flatten(1, 2), True
        elif kind in (nn.Flatten, nn.Linear) and wide:
            x, wide = x.unflatten(1, (vectors, -1)).transpose(0, 1), False
        rule = RULES.get(kind)
        x = layer(x) if rule is None else rule(layer, x, given(name, layer, "weight"), given(name, layer, "bias"))
    return x.unflatten(1, (vectors, -1)).transpose(0, 1) if wide else x


def channels(values: Tensor | None) -> Tensor | None:
    """``[S, C, ...]`` to ``[S · C, ...]``."""
    return None if values is None else values.flatten(0, 1)


def convolution(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One with as many groups as there are vectors, for a convolution's ``layer``; ``weight`` is ``[S, *shape]``, as is
    ``bias``."""
    options = layer.stride, layer.padding, layer.dilation, len(weight) * layer.groups
    return F.conv2d(x, weight.flatten(0, 1), channels(bias), *options)


def batch_norm(layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A batch norm's ``layer`` by the items at hand, or by its own statistics, which are those of every vector; ``weight`` and
    ``bias`` are ``[S, channels]``."""
    factor, shift = channels(weight), channels(bias)
    if layer.running_mean is None:
        return F.batch_norm(x, None, None, factor, shift, training=True, eps=layer.eps)
    mean, variance = (part.repeat(x.shape[1] // layer.num_features) for part in (layer.running_mean, layer.running_var))
    return F.batch_norm(x, mean, variance, factor, shift, training=False, eps=layer.eps)


def group_norm(layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Group norm of so many times the ``layer``'s groups; ``weight`` and ``bias`` are ``[S, channels]``."""
    groups = x.shape[1] // layer.num_channels * layer.num_groups
    return F.group_norm(x, groups, channels(weight), channels(bias), layer.eps)


def linear(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product for each vector; ``weight`` is ``[S, outputs, inputs]``, ``bias`` ``[S, outputs]``, and the ``layer`` has
    nothing more to say."""
    return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def flatten(layer: nn.Module, x: Tensor, *_: None) -> Tensor:
    """Items become vectors, ``[S, n, D]``, as the ``layer`` does to ``[n, *item]``."""
    return x.flatten(2)


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv2d: convolution,
    nn.BatchNorm2d: batch_norm,
    RunningNorm: batch_norm,
    nn.GroupNorm: group_norm,
    nn.Linear: linear,
    nn.Flatten: flatten,
}
"""Layers that have to know of the vectors."""
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
MAPS = frozenset({nn.Conv2d, nn.BatchNorm2d, RunningNorm, nn.GroupNorm, *POOLS})
"""Layers of images and maps."""
POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout)
KNOWN = frozenset({*RULES, *POOLS, *POINTWISE, Standardize})
"""Layers that a chain may have."""
