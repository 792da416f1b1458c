"""The plates that models and guides share: batches, as subsamples of the whole data set where that is known."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor

from data.seeding import draw_part


def task_plate(query_x: Tensor, num_tasks: int | None) -> pyro.plate:
    """The plate ``tasks`` of model and guide, dimension −2: ``query_x`` says how many are at hand, ``num_tasks`` of how many
    (by which the objective is scaled up), ``None`` for all."""
    return subsampled_plate("tasks", num_tasks, len(query_x), -2, query_x.device)


def data_plate(num_data: int | None, batch: int, device: torch.device) -> pyro.plate:
    """The plate ``data`` of a supervised model, dimension −1: ``batch`` items are at hand, of ``num_data`` (``None``:
    these)."""
    return subsampled_plate("data", num_data, batch, -1, device)


def subsampled_plate(name: str, total: int | None, batch: int, dim: int, device: torch.device) -> pyro.plate:
    """A plate over ``batch`` items that stand for ``total``: their log-densities are scaled by total / batch.

    Args:
        total: size of the whole data set; ``None``: the batch is the data set.
    """
    if total is None:
        return pyro.plate(name, batch, dim=dim)
    return pyro.plate(name, total, dim=dim, subsample=torch.arange(batch, device=device))


def plate_noise(shape: Sequence[int], like: Tensor, dim: int) -> Tensor:
    """Standard normal noise for items along ``dim``, with the dtype and device of ``like``.

    A process that has a part of a batch gets its rows of the noise of the whole batch, see :func:`data.seeding.draw_part`:
    the very numbers of one process, but for maps inside ``vmap``, whose order in memory is not that of their shape.
    """

    def draw(whole: Sequence[int]) -> Tensor:
        if list(whole) == list(like.shape):
            return torch.randn_like(like)  # in its memory format
        return torch.randn(whole, dtype=like.dtype, device=like.device)

    return draw_part(draw, shape, dim)


def plate_signs(like: Tensor, dim: int) -> Tensor:
    """±1 with probability ½, of the shape of ``like``, for items along ``dim``; shared as :func:`plate_noise` is."""

    def draw(whole: Sequence[int]) -> Tensor:
        if list(whole) == list(like.shape):
            return torch.randint_like(like, 2)
        return torch.randint(2, whole, dtype=like.dtype, device=like.device)

    return draw_part(draw, like.shape, dim) * 2 - 1


def ordered_like(weights: Tensor, noise: Tensor) -> Tensor:
    """The noise of a task's rows in the order of the rows' sums, so that renaming classes renames results and nothing else.

    Args:
        weights: ``[..., rows, D]``.
        noise: independent of them and equally distributed in all rows, ``[samples, ..., rows, D]``; where one of the two has
            dimensions of size 1 and the other has not, it is taken again and again.
    """
    ranks = weights.sum(-1).argsort(-1).argsort(-1)
    first = torch.arange(0, noise[..., 0].numel(), noise.shape[-2], device=ranks.device).view(*noise.shape[:-2], 1)
    places = ranks + first
    return noise.flatten(0, -2).index_select(0, places.flatten()).view(*places.shape, -1)  # whole rows at a time


def num_classes(support_y: Tensor) -> int:
    """The way of a batch of classification tasks, read off its support labels; it waits for the device that holds them."""
    return int(support_y.max()) + 1
