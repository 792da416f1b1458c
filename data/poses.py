"""Regression tasks that are classes of items: what is asked of an item is a number, such as the angle it was turned by."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from data.arguments import as_whole
from data.episodes import Episode, rows_of
from data.errors import UserError
from data.items import LabelledItems


class TargetSampler:
    """Draws regression tasks, each of items of one class with their targets.

    Args:
        source: items and their classes.
        targets: ``[n]`` real numbers.
        support, queries: items of each task.

    Raises:
        UserError: another number of targets than of items, or a class with fewer items than support + queries.
    """

    def __init__(self, source: LabelledItems, targets: Tensor, *, support: int = 15, queries: int = 15) -> None:
        if len(targets) != len(source):
            raise UserError(f"{len(targets)} targets for {len(source)} items: each item needs one")
        self.support, self.queries = as_whole(support, "support", 1), as_whole(queries, "queries", 1)
        if (least := int(source.counts.min())) < self.support + self.queries:
            needed = f"support + queries = {self.support} + {self.queries}"
            raise UserError(f"one of the classes has {least} items, fewer than {needed}: lower `support` or `queries`")
        self.source, self.targets = source, targets
        self._by_class = torch.argsort(source.labels, stable=True)
        self._start = source.counts.cumsum(0) - source.counts

    @property
    def items(self) -> Tensor:
        """What tasks are made of."""
        return self.source.items

    def on(self, items: Tensor) -> TargetSampler:
        """The same tasks of other ``items`` of the same order, such as the images' features."""
        other = copy.copy(self)
        other.source = replace(self.source, items=items)
        return other

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`~data.episodes.Episode` of way 1, of any classes; equal seeds give equal tasks."""
        counts, generator = self.source.counts, torch.Generator().manual_seed(as_whole(seed, "seed"))
        classes = torch.randint(len(counts), (as_whole(tasks, "tasks", 1),), generator=generator)
        keys = torch.rand(tasks, int(counts.max()), generator=generator)
        keys.masked_fill_(torch.arange(keys.shape[-1]) >= counts[classes, None], -1.0)
        own = keys.topk(self.support + self.queries).indices
        chosen = self._by_class[self._start[classes, None] + own]
        support, query = chosen.split([self.support, self.queries], dim=-1)
        x, y = (lambda rows: rows_of(self.items, rows)), (lambda rows: self.targets[rows])
        return Episode(x(support), y(support), x(query), y(query), way=1)
