"""Checks of data against a network, before any work."""

from __future__ import annotations

import torch
from torch import nn

from data.errors import UserError
from data.items import LabelledItems
from models.networks.layers import embed


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


def check_device(device: str, devices: int = 1) -> None:
    """Fail where there is no such device, or no process to train with (``devices`` < 1).

    Raises:
        UserError: an unknown name, a GPU that is not there, or fewer than one process.
    """
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"`devices={devices!r}` must be a whole number, above 0")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is available to PyTorch: `device=cpu` or `device=auto` do without")


def chosen_device(device: str) -> str:
    """``device``, auto being a GPU where there is one."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
