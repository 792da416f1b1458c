"""Semi-supervised tasks: of a part of the support the labels are not known."""

from __future__ import annotations

import torch
from torch import Tensor

from data.arguments import as_number
from data.episodes import Episode
from data.errors import UserError

UNLABELLED = -1
"""In place of a label that is not known."""


def partly_unlabelled(episode: Episode, share: float, *, seed: int) -> Episode:
    """The same tasks, where a share of each class's support items have the label −1, a random choice of them.

    Of a class with n items round(share · n) lose their label, halves to the even number, so that classes with equally many
    items keep equally many labels. Source: Garcia and Bruna 2018, "Few-shot learning with
    graph neural networks".

    Args:
        episode: tasks with classes.
        share: from 0 to below 1.

    Raises:
        UserError: a class would have no label left, a share that is none, or regression.
    """
    if episode.support_y.is_floating_point():
        raise UserError("targets of regression tasks are not classes: unlabelled items are of tasks with classes alone")
    share = as_number(share, "share", zero=True)
    labels = episode.support_y.cpu()
    keys = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    same = labels[..., None] == labels[..., None, :]  # [tasks, support, support]
    rank = (same & (keys[..., None, :] < keys[..., None])).sum(-1)  # 0, 1, … inside a class, in random order
    count = same.sum(-1)
    hidden = (share * count).round()
    if bool((hidden >= count).any()):
        least = int(count[hidden >= count].min())
        raise UserError(f"`share={share}` leaves a class with {least} support items no label: lower it, or raise `shot`")
    return episode._replace(support_y=keep(episode.support_y, rank >= hidden))


def keep(labels: Tensor, known: Tensor) -> Tensor:
    """Labels where they are ``known``, −1 elsewhere; both ``[tasks, support]``."""
    return labels.masked_fill(~known.to(labels.device), UNLABELLED)
