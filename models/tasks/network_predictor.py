"""ŷ(x, w) where w are the weights of a whole network, or of some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.networks.functional import FunctionalNetwork, groups_at_once
from models.networks.norms import keeps_statistics, mixes_items
from models.tasks.predictors import Predictor


class NetworkPredictor(Predictor):
    """ŷ = f(x; w), one row of weights ``[..., tasks, 1, P]`` for each task's network; all tasks run as one batch.

    Source: Finn et al. 2017, section 2.2 (all weights of a network are adapted).

    Args:
        network: f. The model and guide of a pair share it, and with it the parameters that are not adapted.
        outputs: how many it gives per item: the way of the tasks, or 1 in regression.
        item_shape: of the items that the network takes, where the tasks' are flat vectors of so many numbers, ``[..., n, D]``.
            Without it items are what the network takes, ``[tasks, n, *item]``.
    """

    def __init__(self, network: FunctionalNetwork, outputs: int, item_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network, self.num_outputs = network, outputs
        self.item_shape = None if item_shape is None else tuple(item_shape)

    @property
    def num_weights(self) -> int:
        """P."""
        return self.network.num_weights

    def rows(self, way: int) -> int:
        """1: the network is one row.

        Raises:
            ValueError: the tasks have another number of classes than the network has outputs.
        """
        if way != self.num_outputs:
            raise ValueError(f"this network has {self.num_outputs} outputs, the task has {way} classes: build it for that way")
        return 1

    def outputs(self, features: Tensor, weights: Tensor) -> Tensor:
        items, tasks = features, 1
        if self.item_shape is not None:
            items, tasks = features.unflatten(-1, self.item_shape), features.dim() - 2
        leading = torch.broadcast_shapes(weights.shape[:-2], items.shape[:tasks])
        rows = weights[..., 0, :].expand(*leading, -1).flatten(0, -2)
        items = items.expand(*leading, *items.shape[tasks:]).flatten(0, len(leading) - 1)
        return self.network(items, rows).unflatten(0, leading)

    def linearised(
        self, features: Tensor, weights: Tensor, variance: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """One pass forward for both; outputs are those at the ``weights``, whatever their ``variance``."""
        both = torch.func.vjp(lambda w: self.outputs(features, w), weights)
        return both[0], lambda cotangent: both[1](cotangent)[0]


class EncodedPredictor(NetworkPredictor):
    """ŷ = f(e(x); w): items go once through an encoder e, which no step adapts and all tasks share, and what comes out of it
    through a network of the task's weights.

    The encoder is the first layers of a network and f the others, so that e and the start of w are the network's parameters.
    Each task's items are encoded by themselves, support and queries apart, as f takes them.

    Source: Yin et al. 2020, section 4.2 (θ are e's weights, and φ the task's); with a linear f it is ANIL, Raghu et al. 2020.

    Args:
        encoder: e, ``[n, *item]`` to ``[n, *map]``.
        network: f.
        outputs, item_shape: as of :class:`NetworkPredictor`; the shape is of items that e takes.

    Raises:
        ValueError: a batch norm of the encoder goes on counting statistics.
    """

    def __init__(
        self, encoder: nn.Module, network: FunctionalNetwork, outputs: int, item_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__(network, outputs)
        if keeps_statistics(encoder):
            raise ValueError("batch norm cannot keep statistics of each task: choose others by models.networks.norms.with_norm")
        self.encoder, self.taken = encoder, None if item_shape is None else tuple(item_shape)

    def prepare(self, features: Tensor) -> Tensor:
        """``[tasks, n, *item]`` to ``[tasks, n, *map]``."""
        items = features if self.taken is None else features.unflatten(-1, self.taken)
        if mixes_items(self.encoder):
            return torch.func.vmap(self.encoder, chunk_size=groups_at_once(items))(items)
        parts = items.split(groups_at_once(items))
        return torch.cat([self.encoder(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in parts])
