"""Batches of tasks of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.episodes import Episode, TaskSpec
from data.seeding import mix_seed

KIND = 1  # a stream of random numbers


class MixedSampler:
    """Draws batches to which each of several samplers gives its share: task i comes from sampler i mod their number.

    Args:
        samplers: of tasks with equal way, shot and queries, such as balanced and imbalanced ones.
    """

    def __init__(self, samplers: Sequence[Any]) -> None:
        self.samplers = tuple(samplers)

    @property
    def spec(self) -> TaskSpec:
        """The tasks' shape, as the first sampler has it."""
        return self.samplers[0].spec

    @property
    def items(self) -> Tensor:
        """What tasks are made of, where all samplers draw from one source."""
        return self.samplers[0].items

    def on(self, items: Tensor) -> MixedSampler:
        """The same tasks of other ``items``, where all samplers draw from one source."""
        return MixedSampler([sampler.on(items) for sampler in self.samplers])

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`~data.episodes.Episode`; equal seeds give equal tasks."""
        kinds = len(self.samplers)
        each = -(-tasks // kinds)
        parts = [sampler.sample(each, seed=mix_seed(seed, kind)) for kind, sampler in enumerate(self.samplers)]

        def alternating(name: str) -> Tensor:
            return torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)[:tasks]

        support_x, support_y, query_x, query_y = map(alternating, ("support_x", "support_y", "query_x", "query_y"))
        return Episode(support_x, support_y, query_x, query_y, parts[0].way)


class Extent(NamedTuple):
    """From the least to the most, both included; its text is ``5-20``, or ``5`` where they are equal."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def uniform(self, generator: torch.Generator) -> int:
        """Each with the same probability."""
        return self.least + int(torch.rand((), generator=generator).item() * (self.most - self.least + 1))

    def draw(self, usual: int, generator: torch.Generator) -> int:
        """``usual`` in half of the draws, else uniform."""
        chance, drawn = torch.rand((), generator=generator).item(), self.uniform(generator)
        return usual if chance < 0.5 else drawn


class VariedSampler:
    """Draws batches of tasks whose way, shot and queries differ from batch to batch: way and shot are the usual ones in half of
    the batches each, else uniform in their ranges.

    The queries of a class are uniform between the usual number and as few as leave the task with the usual number in all, for
    the more classes there are.

    Args:
        make: a sampler of tasks of a given shape.
        spec: the usual tasks.
        ways, shots: ranges.
    """

    def __init__(self, make: Callable[[TaskSpec], Any], spec: TaskSpec, ways: Extent, shots: Extent) -> None:
        self.make, self.spec, self.ways, self.shots = make, spec, ways, shots
        self.made: dict[TaskSpec, Any] = {}

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks of one shape as one :class:`~data.episodes.Episode`; equal seeds give equal tasks."""
        generator = torch.Generator().manual_seed(mix_seed(seed, KIND))
        way = self.ways.draw(self.spec.way, generator)
        shot = self.shots.draw(self.spec.shot, generator)
        fewest = max(1, min(self.spec.queries, self.spec.way * self.spec.queries // way))
        return self.of(way, shot, Extent(fewest, self.spec.queries).uniform(generator)).sample(tasks, seed=seed)

    def of(self, way: int, shot: int, queries: int | None = None) -> Any:
        """The sampler of tasks of ``way`` classes with ``shot`` support items and ``queries`` each, as many as usual when not
        given."""
        spec = replace(self.spec, way=way, shot=shot, queries=queries or self.spec.queries)
        if spec not in self.made:
            self.made[spec] = self.make(spec)
        return self.made[spec]
