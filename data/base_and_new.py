"""Tasks of base and new classes, for few-shot learning without forgetting the base classes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from data.episodes import EpisodeSampler
from data.items import LabelledItems
from data.seeding import mix_seed


class BaseAndNewEpisode(NamedTuple):
    """A batch of tasks whose queries belong to base classes (labels first) or to new ones; ``model(*episode)`` takes it whole.

    Attributes:
        support_x, support_y: of the new classes, ``[tasks, way * shot, D]`` and ``[tasks, way * shot]``.
        query_x: new then base queries, ``[tasks, 2 * way * queries, D]``.
        query_y: ``0 .. base - 1`` for base classes, ``base .. base + way - 1`` for new ones.
        way: new classes per task.
        base_classes: ``[tasks, base]``, which prior components are the known classes.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor | None
    way: int
    base_classes: Tensor

    @property
    def support_labels(self) -> Tensor:
        """``support_y`` as queries number the new classes, behind the base classes: ``[tasks, way * shot]``."""
        return self.support_y + self.base_classes.shape[1]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> BaseAndNewEpisode:
        """Move every tensor; a dtype changes floating-point tensors alone."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def tasks(self, chosen: slice | Tensor) -> BaseAndNewEpisode:
        """Some of the tasks."""
        return self.map(lambda tensor: tensor[chosen])

    def unlabelled(self) -> BaseAndNewEpisode:
        """The same tasks without the query labels."""
        return self._replace(query_y=None)

    def map(self, change) -> BaseAndNewEpisode:
        """``change`` of every tensor."""
        return BaseAndNewEpisode(*(change(part) if isinstance(part, Tensor) else part for part in self))  # type: ignore[arg-type]


class BaseAndNewSampler:
    """Draws tasks with as many base queries as new ones.

    Args:
        new: draws the new classes; for training, from the base classes themselves.
        base: features of the base classes that base queries come from.
        playing: the new classes are base classes that play a part: they are left out of the known ones.
    """

    def __init__(self, new: EpisodeSampler, base: LabelledItems, *, playing: bool) -> None:
        self.new, self.base, self.playing = new, base, playing
        self._by_class = torch.argsort(base.labels, stable=True)
        self._start = base.counts.cumsum(0) - base.counts

    @property
    def items(self) -> Tensor:
        """What tasks are made of: the items of new classes, then those of base classes."""
        return torch.cat([self.new.items, self.base.items])

    def on(self, items: Tensor) -> BaseAndNewSampler:
        """The same tasks of other ``items`` of the same order, such as mapped features."""
        new, base = items.tensor_split([len(self.new.items)])
        return BaseAndNewSampler(self.new.on(new), replace(self.base, items=base), playing=self.playing)

    def sample(self, tasks: int, *, seed: int) -> BaseAndNewEpisode:
        """``tasks`` tasks; equal seeds give equal tasks."""
        support, query, query_y, classes = self.new.sample_indices(tasks, seed=seed)
        generator = torch.Generator().manual_seed(mix_seed(seed, 1))
        known = torch.ones(tasks, self.base.num_classes, dtype=torch.bool)
        if self.playing:
            known.scatter_(1, classes, False)
        base_classes = known.nonzero()[:, 1].reshape(tasks, -1)
        base_y = torch.randint(base_classes.shape[1], query_y.shape, generator=generator)
        chosen = base_classes.gather(1, base_y)
        number = (torch.rand(chosen.shape, generator=generator) * self.base.counts[chosen]).long()
        base_x = self.base.items[self._by_class[self._start[chosen] + number]]
        items, spec = self.new.source.items, self.new.spec
        return BaseAndNewEpisode(
            items[support],
            torch.arange(spec.way).repeat_interleave(spec.shot).expand(tasks, -1),
            torch.cat([items[query], base_x], dim=1),
            torch.cat([query_y + base_classes.shape[1], base_y], dim=1),
            spec.way,
            base_classes,
        )
