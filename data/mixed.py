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

    def draw(self, usual: int, generator: torch.Generator) -> int:
        """``usual`` in half of the draws, else uniform."""
        chance, place = torch.rand(2, generator=generator).tolist()
        return usual if chance < 0.5 else self.least + int(place * (self.most - self.least + 1))


class VariedSampler:
    """Draws batches of tasks whose way and shot differ from batch to batch: each is the usual one in half of the batches, else
    uniform in its range.

    The number of queries of a task stays about the same: those of a class are fewer where there are more classes, and never
    more than usual.

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
        return self.of(way, self.shots.draw(self.spec.shot, generator)).sample(tasks, seed=seed)

    def of(self, way: int, shot: int) -> Any:
        """The sampler of tasks of ``way`` classes with ``shot`` support items each."""
        queries = max(1, min(self.spec.queries, self.spec.way * self.spec.queries // way))
        spec = replace(self.spec, way=way, shot=shot, queries=queries)
        if spec not in self.made:
            self.made[spec] = self.make(spec)
        return self.made[spec]
