"""Checks of data against a network, before any work."""

from __future__ import annotations

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
