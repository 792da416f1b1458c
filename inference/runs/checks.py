"""Checks of data against a network, before any work."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from data.arguments import as_whole, shown
from data.errors import UserError
from data.inputs import as_tensor
from data.items import LabelledItems
from data.memory import check_memory
from inference.runs.training import Loop
from models.networks.classifiers import build_network
from models.networks.layers import embed
from models.networks.memory import training_memory


def check_items(network: nn.Module, data: LabelledItems, *, classes: bool) -> None:
    """Fail early and in one line.

    Args:
        classes: whether the labels are classes.

    Raises:
        UserError: items or targets that are not finite, items the network cannot take, or labels it has no output for.
    """
    if data.items.is_floating_point() and not bool(data.items.isfinite().all()):
        bad = int((~data.items.flatten(1).isfinite()).any(1).sum())
        raise UserError(f"{bad} of {len(data)} items hold NaN or infinite numbers: remove or repair them")
    if data.labels.is_floating_point() and not bool(data.labels.isfinite().all()):
        raise UserError("the targets hold NaN or infinite numbers: remove or repair them")
    try:
        outputs = embed(network, data.items[:2]).shape[-1]
    except RuntimeError as error:
        shape = "×".join(map(str, data.items.shape[1:]))
        raise UserError(f"the network cannot take items of shape {shape}: {str(error).splitlines()[0]}") from error
    if classes:
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= outputs:
            raise UserError(f"labels from {low} to {high}, but the network has outputs for 0 to {outputs - 1}")


def check_network_memory(name: str, item_shape: tuple[int, ...], outputs: int, batch: int, loop: Loop, **options: Any) -> None:
    """Fail, before it is built, where memory has no room to train a network by name.

    Args:
        name, item_shape, outputs, options: of :func:`~models.networks.classifiers.build_network`.
        batch: items of a training step.
        loop: how it trains; on a GPU its weights alone are counted, which are made here.

    Raises:
        UserError: there is no room.
    """
    counted = batch if chosen_device(loop.device) == "cpu" else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights without numbers
            needed = training_memory(lambda: build_network(name, item_shape, outputs, **options), item_shape, counted)
    except ValueError:
        return  # who builds it says what is wrong
    shape = "×".join(map(str, item_shape))
    if needed is not None:
        halved = needed / (1 if loop.precision in ("32-true", "64-true") else 2)
        check_memory(halved, f"training {name} with batches of {batch} items of {shape} numbers")


def check_device(device: str, devices: int = 1) -> None:
    """Fail where there is no such device, or no process to train with (``devices`` < 1).

    Raises:
        UserError: an unknown name, a GPU that is not there, or processes that are none, or more than the machine has cores.
    """
    check_devices(as_whole(devices, "devices", 1))
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is available to PyTorch: `device=cpu` or `device=auto` do without")


def check_devices(devices: int) -> None:
    """Refuse more processes, ``devices``, than can compute side by side: a thousand of them stop a machine.

    Raises:
        UserError: more than there are processor cores and GPUs.
    """
    most = max(os.cpu_count() or 1, torch.cuda.device_count(), 2)
    if devices > most:
        raise UserError(f"`devices={devices}` are more processes than this machine can run side by side: at most {most}")


def check_compiler(loop: Loop) -> None:
    """Fail where a ``loop`` is to compile steps that cannot be compiled.

    Raises:
        UserError: several processes, or no C++ compiler for the CPU.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if loop.compile and loop.devices > 1:
        raise UserError("`compile=true` is for steps of one process: leave it or `devices` out")
    if loop.compile and not loop.on_gpu and shutil.which(compiler) is None:
        raise UserError(f"`compile=true` needs a C++ compiler and {compiler} is not here: install it, or leave `compile` out")


def chosen_device(device: str) -> str:
    """``device``, auto being a GPU where there is one."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def check_place(*place: Any) -> None:
    """Fail where tensors cannot go to.

    Args:
        place: a device, a floating-point type, or one of each.

    Raises:
        UserError: neither, or a device that is not here.
    """
    given = ", ".join(map(shown, place))
    if not place or not all(isinstance(part, torch.device | str) or is_floating(part) for part in place):
        raise UserError(f"cannot go to {given or 'nowhere'}: give a device, a floating-point type, or one of each")
    try:
        torch.empty(0).to(*place)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"cannot go to {given}: {str(error).splitlines()[0]}") from None


def is_floating(kind: Any) -> bool:
    """Whether ``kind`` is a floating-point type."""
    return isinstance(kind, torch.dtype) and kind.is_floating_point


def read_items(x: Any, item_shape: tuple[int, ...] | None) -> Tensor:
    """Items to predict, ``[n, *item_shape]``; see :func:`~data.inputs.as_tensor` for what ``x`` may be.

    Raises:
        UserError: no items, another shape, or numbers that are not finite.
    """
    items = as_tensor(x)
    if item_shape is not None and tuple(items.shape[1:]) != item_shape:
        given, wanted = ("×".join(map(str, shape)) or "()" for shape in (items.shape, item_shape))
        raise UserError(f"x has shape {given}: give n×{wanted}, as the network was fitted to items of shape {wanted}")
    if not len(items):
        raise UserError("x has no items: give one at least")
    if items.is_floating_point() and not all(bool(part.isfinite().all()) for part in items.split(10_000)):
        raise UserError("x holds NaN or infinite numbers: remove or repair these items")
    return items
