"""Tasks at hand, one for each domain, and how batches of them are drawn."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from data.episodes import Episode


class TaskBank:
    """Draws batches of different tasks from those at hand.

    Args:
        episode: all of them.
    """

    def __init__(self, episode: Episode) -> None:
        self.episode = episode

    @property
    def items(self) -> Tensor:
        """What tasks are made of: ``[tasks, query, *item]``."""
        return self.episode.query_x

    def on(self, items: Tensor) -> TaskBank:
        """The same tasks of other ``items`` of the same order, such as the images' features."""
        return TaskBank(self.episode._replace(support_x=items[:, :0], query_x=items))

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks, no two alike as long as there are so many; equal seeds give equal tasks."""
        generator, known = torch.Generator().manual_seed(seed), len(self.episode.query_x)
        passes = [torch.randperm(known, generator=generator) for _ in range(-(-tasks // known))]
        return self.episode.tasks(torch.cat(passes)[:tasks])


def joined(episodes: Iterable[Episode]) -> Episode:
    """The tasks of several batches, all with labels and of one shape, as one."""
    parts = list(episodes)
    support_x, support_y, query_x, query_y = (torch.cat(tensors) for tensors in zip(*(part[:4] for part in parts), strict=True))
    return Episode(support_x, support_y, query_x, query_y, parts[0].way)
