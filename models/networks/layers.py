"""Layers of any network by name: what comes out of them, and what goes in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from data.gather import gather

Network = TypeVar("Network", bound=nn.Module)
PIXELS = 2**19
"""At most so many pixels are embedded at once."""
INPUT = ".input"
"""Behind a layer's name: what goes into it, not what comes out."""


@contextmanager
def capture(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs, or the inputs, of named layers while the block runs; the hooks are gone after it, whatever happens.

    Args:
        names: as in ``named_modules()`` for a layer's output; with ``.input`` behind it for its first input, which need not be
            the output of any module: ``fc.input`` is what a function gave to ``fc``. A module of exactly that name wins.

    Raises:
        ValueError: an unknown layer (the message lists those there are), one without a tensor output, or one whose output
            the next layer overwrites.
    """
    modules = dict(network.named_modules())
    if unknown := [name for name in names if name not in modules and name.removesuffix(INPUT) not in modules]:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"no layer {', '.join(map(repr, unknown))}: choose from {known}, or the input of one, as in fc{INPUT}")
    found: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(name: str, value: object) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(f"layer {name!r} gives a {type(value).__name__}, not a tensor: choose another")
        found[name], versions[name] = value, value._version

    def hook(name: str) -> RemovableHandle:
        if name in modules:
            return modules[name].register_forward_hook(lambda module, inputs, output: keep(name, output))
        return modules[name.removesuffix(INPUT)].register_forward_pre_hook(
            lambda module, inputs: keep(name, inputs[0] if inputs else None)
        )

    handles = [hook(name) for name in dict.fromkeys(names)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if changed := [name for name, value in found.items() if value._version != versions[name]]:
        raise ValueError(f"the output of layer {changed[0]!r} is overwritten in place by the layer after it: choose that one")


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def placed(network: nn.Module, x: Tensor) -> Tensor:
    """Inputs where the network's parameters are; floating numbers in their type too."""
    parameter = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), None)
    if parameter is None or not x.is_floating_point():
        return x.to(device_of(network))
    return x.to(parameter.device, parameter.dtype)


def as_trained(network: Network) -> Network:
    """``network``, its weights in the layout in memory that training gives them, channels last: sums of convolutions round
    differently in another one, so that a network that was read from a file would not give the numbers of the one written."""
    return network.to(memory_format=torch.channels_last)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode while the block runs; each module gets its own mode back."""
    modules = [(module, module.training) for module in network.modules()]
    if any(training for _, training in modules):
        network.eval()
    try:
        yield
    finally:
        for module, training in modules:
            if module.training != training:
                module.training = training


@torch.no_grad()
def features(network: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs (or inputs) of the layers ``names`` in evaluation mode, without gradients: parameters, statistics and mode stay.

    Raises:
        ValueError: see :func:`capture`.
    """
    with evaluating(network), capture(network, names) as found:
        network(placed(network, x))
    return found


def layer_outputs(owner: str, network: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """:func:`features`, with errors that say who cannot do what.

    Args:
        names: of layers, as ``named_modules`` has them.
        owner: who the network is, for messages.

    Raises:
        ValueError: an unknown layer, one that did not run, or inputs the network cannot take.
    """
    try:
        found = features(network, example, names)
    except RuntimeError as error:
        shape = "×".join(map(str, example.shape[1:]))
        raise ValueError(f"the {owner} cannot take inputs of shape {shape}: {str(error).splitlines()[0]}") from error
    if idle := [name for name in names if name not in found]:
        raise ValueError(f"layer {idle[0]!r} of the {owner} takes no part in its forward pass: choose another")
    return found


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """A network's outputs ``[n, D]`` (of single precision at least, on the CPU; of many items mapped from a file, see
    :func:`~data.gather.gather`) for ``images`` in evaluation mode, ``batch_size`` at a time (fewer, where images are larger
    than 45×45, so that memory stays the same); the network is left as it was."""
    pixels = math.prod(images.shape[2:])
    batch_size = max(1, min(batch_size, PIXELS // pixels))
    with evaluating(network):
        parts = (network(placed(network, part)) for part in images.split(batch_size))
        return gather(part.to("cpu", torch.promote_types(part.dtype, torch.float32)) for part in parts)
