"""The plates that models and guides share: batches as subsamples of the whole data set."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor


def task_plate(query_x: Tensor, num_tasks: int | None) -> pyro.plate:
    """The plate ``tasks`` of model and guide: a batch, as a subsample of ``num_tasks`` where that is given."""
    batch = query_x.shape[0]
    if num_tasks is None:
        return pyro.plate("tasks", batch, dim=-2)
    return pyro.plate("tasks", num_tasks, dim=-2, subsample=torch.arange(batch, device=query_x.device))


def num_classes(support_y: Tensor) -> int:
    """The way of a batch of classification tasks, read off its support labels."""
    return int(support_y.max()) + 1


def data_plate(num_data: int | None, batch: int, device: torch.device) -> pyro.plate:
    """The plate ``data``: a batch, as a subsample of ``num_data`` where that is given."""
    if num_data is None:
        return pyro.plate("data", batch, dim=-1)
    return pyro.plate("data", num_data, dim=-1, subsample=torch.arange(batch, device=device))
