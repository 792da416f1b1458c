"""Layers of any network by name: their outputs, and which of them represent it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.networks.backbones import PreActivationBlock

RESIDUAL_BLOCKS = (BasicBlock, Bottleneck, PreActivationBlock)


@contextmanager
def capture(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named layers while the block runs; the hooks are gone after it, whatever happens.

    Raises:
        ValueError: an unknown layer (the message lists those there are), one without a tensor output, or one whose output
            the next layer overwrites.
    """
    modules = dict(network.named_modules())
    if unknown := [name for name in names if name not in modules]:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"no layer {', '.join(map(repr, unknown))}: choose from {known}")
    found: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"layer {name!r} gives a {type(output).__name__}, not a tensor: choose another")
            found[name], versions[name] = output, output._version

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if changed := [name for name, output in found.items() if output._version != versions[name]]:
        raise ValueError(f"the output of layer {changed[0]!r} is overwritten in place by the layer after it: choose that one")


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode while the block runs; each module gets its own mode back."""
    was_training = [module.training for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in zip(network.modules(), was_training, strict=True):
            module.training = training


@torch.no_grad()
def features(network: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of named layers in evaluation mode, without gradients: parameters, statistics and mode stay as they were.

    Raises:
        ValueError: see :func:`capture`.
    """
    with evaluating(network), capture(network, names) as found:
        network(x.to(device_of(network)))
    return found


def layer_outputs(owner: str, network: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """:func:`features`, with errors that say who cannot do what.

    Args:
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


class Executed(NamedTuple):
    """A module that ran, in the order in which modules end.

    Attributes:
        name: as in ``named_modules()``.
        module: itself.
        shape: of one item's output.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def executed(network: nn.Module, example: Tensor) -> list[Executed]:
    """All named modules that run on ``example`` and give a tensor, in order."""
    order: list[Executed] = []

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                order.append(Executed(name, module, tuple(output.shape[1:])))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    try:
        features(network, example, [])
    finally:
        for handle in handles:
            handle.remove()
    return order


def intermediate_layers(network: nn.Module, example: Tensor) -> list[str]:
    """The layers that represent a network inside: the last residual block of each group, or else its max-pools, or else (an
    MLP) the activations of its hidden layers.

    A group is a run of blocks whose outputs have one shape. Source: Ahn et al. 2019, section 3.2 (MI-I).

    Raises:
        ValueError: the network has none of them.
    """
    order = executed(network, example)
    if blocks := [layer for layer in order if isinstance(layer.module, RESIDUAL_BLOCKS)]:
        return list({layer.shape: layer.name for layer in blocks}.values())
    if pools := [layer.name for layer in order if isinstance(layer.module, nn.MaxPool2d)]:
        return pools
    leaves = [layer for layer in order if not any(layer.module.children())]
    linear = [i for i, layer in enumerate(leaves) if isinstance(layer.module, nn.Linear)]
    if hidden := [leaves[i + 1].name for i in linear[:-1]]:
        return hidden
    raise ValueError("no residual blocks, max-pools or hidden linear layers: name the layers to compare")


def logits_layer(network: nn.Module, example: Tensor) -> str:
    """The last linear layer, whose outputs are the logits.

    Raises:
        ValueError: there is none.
    """
    return leaves_to_logits(network, example)[-1]


def penultimate_layer(network: nn.Module, example: Tensor) -> str:
    """The layer before the logits, the student's side of MI-L. Source: Ahn et al. 2019, section 3.2.

    Raises:
        ValueError: there is no linear layer, or nothing before it.
    """
    names = leaves_to_logits(network, example)
    if len(names) < 2:
        raise ValueError("a single layer has none before its logits")
    return names[-2]


def leaves_to_logits(network: nn.Module, example: Tensor) -> list[str]:
    """Names of the layers that run up to the last linear one, that included."""
    leaves = [layer for layer in executed(network, example) if not any(layer.module.children())]
    last = [i for i, layer in enumerate(leaves) if isinstance(layer.module, nn.Linear)]
    if not last:
        raise ValueError("no linear layer gives the logits: name the layers to compare")
    return [layer.name for layer in leaves[: last[-1] + 1]]


def match_layers(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (teacher's layer, student's layer): as many as the shorter list has, spread evenly over depth, last with last."""
    count = min(len(teacher), len(student))
    pick = lambda names, i: names[((i + 1) * len(names) + count // 2) // count - 1]  # noqa: E731
    return [(pick(teacher, i), pick(student, i)) for i in range(count)]


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """A network's outputs ``[n, D]`` (float32, on the CPU) for ``images`` in evaluation mode; the network is left as it was."""
    device = device_of(network)
    with evaluating(network):
        return torch.cat([network(part.to(device)).float().cpu() for part in images.split(batch_size)])
