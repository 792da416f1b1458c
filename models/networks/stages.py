"""Which layers represent a network: the ends of its stages, its logits, the last layer's input; and pairs of two networks'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.networks.backbones import PreActivationBlock
from models.networks.layers import INPUT, features

RESIDUAL_BLOCKS = (BasicBlock, Bottleneck, PreActivationBlock)


class Layer(NamedTuple):
    """A module that ran, in the order in which modules end.

    Attributes:
        name: as in ``named_modules()``.
        module: itself.
        shape: of one item's output.
        taken: shape of one item's input; empty where it is no tensor.
        overwritten: whether a later layer changes the output in place, so that it cannot be captured.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    taken: tuple[int, ...] = ()
    overwritten: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width) of maps; empty for vectors."""
        return self.shape[1:] if len(self.shape) == 3 else ()


def executed(network: nn.Module, example: Tensor) -> list[Layer]:
    """All named modules that run on the first items of ``example`` and give a tensor, in order."""
    ran: list[tuple[str, nn.Module, Tensor, int, tuple[int, ...]]] = []

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                taken = tuple(inputs[0].shape[1:]) if inputs and isinstance(inputs[0], Tensor) else ()
                ran.append((name, module, output, output._version, taken))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    try:
        features(network, example[:2], [])
    finally:
        for handle in handles:
            handle.remove()
    return [Layer(name, m, tuple(out.shape[1:]), taken, out._version != version) for name, m, out, version, taken in ran]


def intermediate_layers(network: nn.Module, example: Tensor) -> list[Layer]:
    """The layers that represent a network inside: the last residual block of each group; or its max-pools, where they make all
    its resolutions; or the last layer of each resolution (:func:`resolution_stages`); or (an MLP) the activations of its hidden
    layers.

    A group is a run of blocks whose outputs have one shape; blocks are torchvision's and our wide ResNet's. Source: Ahn et al.
    2019, section 3.2 (MI-I).

    Raises:
        ValueError: the network has none of them.
    """
    order = executed(network, example)
    if blocks := [layer for layer in order if isinstance(layer.module, RESIDUAL_BLOCKS)]:
        return list({layer.shape: layer for layer in blocks}.values())
    pools = [layer for layer in order if isinstance(layer.module, nn.MaxPool2d) and layer.shape != layer.taken]
    if pools and pools_make_resolutions(order, pools):
        return pools
    if found := resolution_stages(order) or pools:
        return found
    leaves = [layer for layer in order if is_leaf(layer)]
    linear = [i for i, layer in enumerate(leaves) if isinstance(layer.module, nn.Linear)]
    if hidden := [leaves[i + 1] for i in linear[:-1]]:
        return hidden
    raise ValueError("no residual blocks, max-pools, stages or hidden linear layers: name the layers to compare")


def pools_make_resolutions(order: Sequence[Layer], pools: Sequence[Layer]) -> bool:
    """Whether no convolution halves the maps behind the last max-pool, and that is not all in the stem."""
    convolutions = [i for i, layer in enumerate(order) if isinstance(layer.module, nn.Conv2d)]
    last = order.index(pools[-1])
    later = [math.prod(order[i].size) for i in convolutions if i > last]
    halved = any(1 < area <= math.prod(pools[-1].size) / 2 for area in later)
    return not halved and (last > convolutions[min(1, len(convolutions) - 1)] or not later if convolutions else True)


def resolution_stages(order: Sequence[Layer]) -> list[Layer]:
    """The last layer of each spatial resolution that convolutions give maps of, the stem's (all before the second convolution)
    and what lies inside blocks excepted.

    A block is a module, not a ``Sequential``, that takes maps and gives maps of at most one other resolution: its inner layers
    are not on every path through the network.
    """
    convolutions = [i for i, layer in enumerate(order) if isinstance(layer.module, nn.Conv2d)]
    blocks = [layer.name for layer in order if is_block(layer, order)]
    stages: dict[tuple[int, ...], Layer] = {}
    worked = set()
    for layer in order[convolutions[1] :] if len(convolutions) > 1 else ():
        if not layer.size or any(layer.name.startswith(f"{name}.") for name in blocks):
            continue
        if layer.name in blocks or is_leaf(layer):
            worked |= {layer.size} if has_convolution(layer.module) else set()
        if not layer.overwritten:
            stages[layer.size] = layer
    ends = [layer for size, layer in stages.items() if size in worked]
    return sorted(ends, key=order.index)


def is_block(layer: Layer, order: Sequence[Layer]) -> bool:
    """See :func:`resolution_stages`; squeezing to 1×1 inside does not count as a resolution."""
    if is_leaf(layer) or isinstance(layer.module, nn.Sequential) or not layer.size or len(layer.taken) != 3:
        return False
    inside = {other.size for other in order if other.name.startswith(f"{layer.name}.") and other.size}
    return inside - {(1, 1)} <= {layer.size, layer.taken[1:]}


def is_leaf(layer: Layer) -> bool:
    """Whether it has no modules inside."""
    return not any(layer.module.children())


def has_convolution(module: nn.Module) -> bool:
    """Whether it is or holds one."""
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def logits_layer(network: nn.Module, example: Tensor) -> str:
    """The last linear layer, whose outputs are the logits.

    Raises:
        ValueError: there is none.
    """
    linear = [layer.name for layer in executed(network, example) if isinstance(layer.module, nn.Linear)]
    if not linear:
        raise ValueError("no linear layer gives the logits: name the layers to compare")
    return linear[-1]


def penultimate_layer(network: nn.Module, example: Tensor) -> str:
    """The input of the logits' layer, whatever function or pooling stands before it: the student's side of MI-L. Source: Ahn et
    al. 2019, section 3.2.

    Raises:
        ValueError: there is no linear layer, or nothing before it.
    """
    logits = logits_layer(network, example)
    if next(layer.name for layer in executed(network, example) if is_leaf(layer)) == logits:
        raise ValueError("a single layer has none before its logits")
    return logits + INPUT


def match_layers(teacher: Sequence[Layer], student: Sequence[Layer]) -> list[tuple[str, str]]:
    """Pairs (teacher's layer, student's layer), in the order of depth: maps with maps of the same or the next size.

    Among all ways to pair in order, the one with the largest Σ (1 − |log₂ ratio of the sizes|): equal sizes count 1, and sizes
    an octave apart, 0, make no pair. Networks without such pairs, and vectors, are matched by depth (:func:`match_by_depth`).
    """

    def worth(t: Layer, s: Layer) -> float:
        sizes = [math.sqrt(math.prod(layer.size)) if layer.size else math.nan for layer in (t, s)]
        return 1 - abs(math.log2(sizes[0] / sizes[1]))

    best = [[0.0] * (len(student) + 1) for _ in range(len(teacher) + 1)]  # of the first i and the first j layers
    for i, t in enumerate(teacher):
        for j, s in enumerate(student):
            value = worth(t, s)
            paired = best[i][j] + value if value > 0 else -math.inf
            best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j], paired)
    pairs: list[tuple[str, str]] = []
    i, j = len(teacher), len(student)
    while i and j:
        value = worth(teacher[i - 1], student[j - 1])
        if value > 0 and best[i][j] == best[i - 1][j - 1] + value:
            i, j = i - 1, j - 1
            pairs.insert(0, (teacher[i].name, student[j].name))
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return pairs or match_by_depth([layer.name for layer in teacher], [layer.name for layer in student])


def match_by_depth(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (teacher's layer, student's layer): as many as the shorter list has, spread evenly over depth, last with last."""
    count = min(len(teacher), len(student))
    pick = lambda names, i: names[((i + 1) * len(names) + count // 2) // count - 1]  # noqa: E731
    return [(pick(teacher, i), pick(student, i)) for i in range(count)]
