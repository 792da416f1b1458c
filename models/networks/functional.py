"""Networks as functions of their weights: vectors, one for each task, in place of a module's own parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from models.networks.folded import chain_of, fits, run
from models.networks.frozen import freeze
from models.networks.norms import keeps_statistics

Shapes = Mapping[str, torch.Size]
NUMBERS_AT_ONCE = 2**18  # of items, on a CPU: more of them leave its caches from layer to layer (benchmarks/speed/maml.py)


class FunctionalNetwork(nn.Module):
    """f(x; w): a network, or some of its parameters, under many weight vectors at once, each with its own items.

    What is adapted is one vector w, in the order of ``named_parameters()``. The other parameters stay the module's own: all
    vectors share them, and training learns them. Each vector is run by itself, batch norm included. Chains of usual layers run
    as :mod:`models.networks.folded` says, any other network as one batch of ``torch.func.vmap``.

    Args:
        network: copied, not changed; the copy keeps the adapted parameters as constants, for :meth:`flat` alone.
        adapted: which parameters are in w, by name; all when not given.
        chunk: how many vectors run at once, which bounds the memory; when not given all, but on a CPU no more than its caches
            hold.

    Raises:
        ValueError: no parameter is adapted, or the network has a batch norm that goes on counting statistics, which cannot
            follow each vector by itself.

    Attributes:
        num_weights: P.
        shapes: of the adapted parameters, by name.
    """

    def __init__(self, network: nn.Module, adapted: Callable[[str], bool] | None = None, *, chunk: int | None = None) -> None:
        super().__init__()
        if keeps_statistics(network):
            raise ValueError("batch norm cannot keep statistics of each task: choose others by models.networks.norms.with_norm")
        self.network = copy.deepcopy(network)
        self.shapes = {name: p.shape for name, p in network.named_parameters() if adapted is None or adapted(name)}
        if not self.shapes:
            raise ValueError("no parameter of the network is adapted")
        self.num_weights = sum(shape.numel() for shape in self.shapes.values())
        self.chunk = chunk
        names = dict(network.named_parameters(remove_duplicate=False))
        self.tied = len(names) > len({*names.values()})  # a parameter goes by several names
        freeze(self.network, self.shapes.__contains__)

    def flat(self) -> Tensor:
        """The network's own values of the adapted parameters, ``[P]``: where a learned start begins."""
        return flat_weights(self.network, self.shapes)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """S vectors ``[S, P]``, and items ``[S, n, *item]`` for each, to ``[S, n, outputs]``."""
        chain = None if self.tied else chain_of(self.network)
        if chain is None or not fits(chain, x.dim() - 2):
            return torch.func.vmap(self.call, randomness="different", chunk_size=self.at_once(x))(x, weights)
        both = zip(x.split(self.at_once(x)), weights.split(self.at_once(x)), strict=True)
        outputs = [run(chain, split_weights(some, self.shapes), items) for items, some in both]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def at_once(self, x: Tensor) -> int:
        """How many vectors run at once, of items ``[S, n, *item]``."""
        return groups_at_once(x) if self.chunk is None else self.chunk

    def call(self, x: Tensor, weights: Tensor) -> Tensor:
        """The network under one vector ``[P]``: ``[n, *item]`` to ``[n, outputs]``."""
        return torch.func.functional_call(self.network, split_weights(weights, self.shapes), (x,))


def groups_at_once(x: Tensor) -> int:
    """How many of S groups of items, ``[S, n, *item]``, go through a network at once: all, but on a CPU no more than its caches
    hold."""
    return max(1, len(x) if x.device.type != "cpu" else NUMBERS_AT_ONCE // max(1, x.shape[1:].numel()))


def flat_weights(network: nn.Module, names: Iterable[str]) -> Tensor:
    """The values of a network's parameters of these ``names``, one after the other: ``[P]``."""
    known = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return torch.cat([known[name].detach().flatten() for name in names])


def split_weights(weights: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Vectors ``[..., P]`` as parameters of these ``shapes``, name by name: ``[..., *shape]``."""
    parts = weights.split([shape.numel() for shape in shapes.values()], dim=-1)
    return {
        name: part.unflatten(-1, shape) if shape else part[..., 0]
        for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }


def last_layer(network: nn.Module) -> Callable[[str], bool]:
    """Whether a parameter, by name, is of the last of the network's layers that have any: what ANIL adapts.

    Source: Raghu et al. 2020, "Rapid learning or feature reuse?", section 4.
    """
    layer = [name.rpartition(".")[0] for name, _ in network.named_parameters()][-1]
    return lambda name: name.rpartition(".")[0] == layer
