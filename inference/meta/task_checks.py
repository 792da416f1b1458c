"""What tasks that a user makes by hand must be."""

from __future__ import annotations

import torch
from torch import Tensor

from data.errors import UserError


def check_tensors(**given: object) -> None:
    """Refuse what is no ordinary tensor, by its name.

    Raises:
        UserError: in one line.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} must be a tensor, not {type(value).__name__}: torch.as_tensor makes one, or use `predict`")
        if value.layout is not torch.strided:
            raise UserError(f"{name} must be a dense tensor, not a sparse one: its to_dense() makes one")


def check_shapes(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None, *, item_dim: int) -> None:
    """Refuse hand-made tasks whose tensors do not fit together.

    Args:
        support_x, support_y, query_x, query_y: with the dimension of tasks.
        item_dim: dimensions of one item: 3 of an image, 1 of its features.

    Raises:
        UserError: in one line.
    """
    if support_y.is_floating_point() or support_y.is_complex() or support_y.dtype == torch.bool:
        raise UserError(f"support_y must be whole numbers, not {support_y.dtype}")
    if support_y.dim() != 2 or support_x.dim() != 2 + item_dim or query_x.dim() != 2 + item_dim:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (support_x, support_y, query_x))
        raise UserError(
            "support_x [tasks, support, *item], support_y [tasks, support] and query_x [tasks, query, *item] all have the "
            f"dimension of tasks, or none of them has: their shapes do not fit ({shapes} with it)"
        )
    if support_x.shape[:2] != support_y.shape or len(query_x) != len(support_x):
        raise UserError(
            f"support_x has {support_x.shape[1]} items in {len(support_x)} tasks, support_y {support_y.shape[1]} labels in "
            f"{len(support_y)} and query_x {query_x.shape[1]} items in {len(query_x)}: they do not fit together"
        )
    if not query_x.shape[1]:
        raise UserError("query_x is empty: give at least one query")
    if query_y is not None and query_y.shape != query_x.shape[:2]:
        raise UserError(f"query_y {list(query_y.shape)} does not fit {query_x.shape[1]} queries in {len(query_x)} tasks")


def checked_way(support_y: Tensor) -> int:
    """The number of classes of hand-made tasks.

    Raises:
        UserError: no labels, or labels that are not ``0 .. way - 1``, each of them in every task.
    """
    if not support_y.numel():
        raise UserError("support_y is empty: this guide starts from labelled items, at least one of each class")
    way = int(support_y.max()) + 1
    present = torch.stack([torch.bincount(row, minlength=way) > 0 for row in support_y.cpu().clamp_min(0)])
    if int(support_y.min()) < 0 or not bool(present.all()):
        found = ", ".join(map(str, support_y.unique().tolist()[:8]))
        raise UserError(
            f"support_y holds the labels {found}: number the classes of every task 0, 1, …, "
            "for example by torch.unique(support_y, return_inverse=True)"
        )
    if way < 2:
        raise UserError("support_y holds one class: a task has at least two")
    return way
