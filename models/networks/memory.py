"""How much memory a network takes to train, known before it is built."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def training_memory(build: Callable[[], nn.Module], item_shape: tuple[int, ...], batch: int) -> float | None:
    """Bytes that training takes at least: weights, gradients, two moments of an optimiser, and what a batch leaves for the
    backward pass.

    The network is built and run without any numbers, on PyTorch's device ``meta``.

    Args:
        build: makes the network.
        item_shape: images (uint8) of (channels, height, width), or other items (floats).
        batch: items at once.

    Returns:
        infinity where a size exceeds what can be counted, and ``None`` where the network does not run without numbers.

    Raises:
        ValueError: ``build`` does.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor
        return tensor

    try:
        with torch.device("meta"):
            network = build()
            dtype = torch.uint8 if len(item_shape) == 3 else torch.float32
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                network(torch.empty(batch, *item_shape, dtype=dtype))
    except RuntimeError as error:
        return float("inf") if "overflow" in str(error) else None
    except NotImplementedError:
        return None
    weights = {id(weight.untyped_storage()): weight.nbytes for weight in network.parameters()}
    passed = sum(tensor.untyped_storage().nbytes() for name, tensor in kept.items() if name not in weights)
    return 4 * sum(weights.values()) + passed
