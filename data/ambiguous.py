"""Ambiguous tasks: items have three attributes, two of which tell the classes apart, and the support does not say which two."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data.arguments import as_whole
from data.episodes import Attributes, Episode, EpisodeSampler, TaskSpec, rows_of
from data.errors import UserError
from data.fixed_labels import FixedLabelSampler
from data.items import LabelledItems
from data.seeding import mix_seed

NUM_ATTRIBUTES = 3
LEFT_OUT = 2, 1, 0
"""Of the pairs of attributes (0, 1), (0, 2) and (1, 2), the attribute that is in none."""
FIRST, SECOND = (1, 0, 0), (2, 2, 1)
"""The pair, by the attribute that is not in it."""


class AttributeSampler:
    """Draws tasks of two classes: class 1 has both attributes of a pair, class 0 has neither, or, contested, not both.

    Where tasks are not ambiguous, each has a pair of its own, and the third attribute is there or not at random in each item.
    Where they are, items of class 1 in the support have all three attributes and those of class 0 none. The queries are then
    three blocks, one for each of the pairs (0, 1), (0, 2) and (1, 2), in which the third attribute contradicts the pair: who
    goes by another pair is wrong in half of the block, so that each block tells one of three right answers to the same
    support. Source: Finn, Xu and Levine 2018, "Probabilistic model-agnostic meta-learning", the faces' attributes.

    Args:
        source: items whose class numbers, 0 to 7, have one bit for each attribute.
        shot, queries: items of each class in the support, and in the queries or in a block of them.
        ambiguous: whether tasks are.
        contested: whether class 0 is what has not both; in a support that is ambiguous it has none all the same.

    Raises:
        UserError: not eight classes, or a class with fewer items than shot + queries; or, contested and ambiguous, than three
            times the queries.
    """

    def __init__(
        self, source: LabelledItems, *, shot: int = 5, queries: int = 15, ambiguous: bool = False, contested: bool = False
    ) -> None:
        if source.num_classes != 2**NUM_ATTRIBUTES:
            raise UserError(f"{source.num_classes} classes: items with three attributes have {2**NUM_ATTRIBUTES}")
        kind = Attributes.AMBIGUOUS if ambiguous else Attributes.UNAMBIGUOUS
        self.spec = TaskSpec(way=2, shot=as_whole(shot, "shot", 1), queries=queries, attributes=kind)
        if (least := int(source.counts.min())) < self.spec.shot + self.spec.queries:
            needed = f"shot + queries = {self.spec.shot} + {self.spec.queries}"
            raise UserError(f"one of the classes has {least} items, fewer than {needed}: lower `shot` or `queries`")
        if ambiguous and contested and least < NUM_ATTRIBUTES * self.spec.queries:
            raise UserError(f"one of the classes has {least} items, fewer than 3 · queries = 3 · {queries}: lower `queries`")
        self.source, self.ambiguous, self.contested = source, ambiguous, contested
        self._by_kind = torch.argsort(source.labels, stable=True)
        self._start = source.counts.cumsum(0) - source.counts

    @property
    def items(self) -> Tensor:
        """What tasks are made of."""
        return self.source.items

    def on(self, items: Tensor) -> AttributeSampler:
        """The same tasks of other ``items`` of the same order, such as the images' features."""
        other = copy.copy(self)
        other.source = replace(self.source, items=items)
        return other

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`~data.episodes.Episode`; equal seeds give equal tasks. Support and blocks are in the
        order of their labels; no item is twice in a task."""
        spec, generator = self.spec, torch.Generator().manual_seed(as_whole(seed, "seed"))
        classes = torch.arange(2)
        support_y = classes.repeat_interleave(spec.shot).expand(tasks, -1)
        blocks = NUM_ATTRIBUTES if self.ambiguous else 1
        query_y = classes.repeat_interleave(spec.queries).repeat(blocks).expand(tasks, -1)
        labels = torch.cat([support_y, query_y], dim=-1)
        free = torch.arange(labels.shape[-1]) >= (
            2 * spec.shot if self.ambiguous else 0
        )  # an ambiguous support has all or none
        if self.ambiguous:
            third = torch.cat([torch.zeros(2 * spec.shot).long(), torch.tensor(LEFT_OUT).repeat_interleave(2 * spec.queries)])
            kinds = (labels * 7) ^ (free << third)  # turns the third attribute over
        else:
            third = torch.randint(NUM_ATTRIBUTES, (tasks, 1), generator=generator)
            kinds = (labels * 7) ^ (torch.randint(2, labels.shape, generator=generator) << third)
        if self.contested:
            pair = torch.tensor([FIRST, SECOND])[:, third]
            has = torch.randint(int(self.ambiguous), 3, labels.shape, generator=generator)  # none, the first, the second
            kinds = kinds | torch.where(has == 1, 1 << pair[0], 1 << pair[1]) * ((has > 0) & free & (labels == 0))
        chosen = self._choose(kinds, generator)
        support, query = chosen.split([2 * spec.shot, 2 * spec.queries * blocks], dim=-1)
        return Episode(rows_of(self.items, support), support_y, rows_of(self.items, query), query_y, 2)

    def _choose(self, kinds: Tensor, generator: torch.Generator) -> Tensor:
        """Different items of these ``kinds``, ``[tasks, n]``."""
        counts = self.source.counts
        keys = torch.rand(len(kinds), len(counts), int(counts.max()), generator=generator)
        keys.masked_fill_(torch.arange(keys.shape[-1]) >= counts[:, None], 2.0)
        order = keys.argsort(-1)  # of each kind's items, in each task
        one_hot = torch.nn.functional.one_hot(kinds, len(counts))
        rank = (one_hot.cumsum(1) - 1).gather(-1, kinds[..., None])[..., 0]  # 0, 1, … among a task's items of one kind
        own = order[torch.arange(len(kinds))[:, None], kinds, rank]
        return self._by_kind[self._start[kinds] + own]


class OnePairSampler:
    """Draws tasks of two attributes to train on: half of them tell the pair by their support, half are ambiguous, each with the
    queries of one pair, drawn at random. All are contested, see :class:`AttributeSampler`.

    Args:
        source: items whose class numbers, 0 to 7, have one bit for each attribute.
        shot, queries: items of each class in the support, and in the queries.

    Raises:
        UserError: as of :class:`AttributeSampler`.
    """

    def __init__(self, source: LabelledItems, *, shot: int = 5, queries: int = 15) -> None:
        self.unambiguous, self.ambiguous = (
            AttributeSampler(source, shot=shot, queries=queries, ambiguous=yes, contested=True) for yes in (False, True)
        )
        self.spec = replace(self.unambiguous.spec, attributes=Attributes.MIXED)

    @property
    def items(self) -> Tensor:
        """What tasks are made of."""
        return self.unambiguous.items

    def on(self, items: Tensor) -> OnePairSampler:
        """The same tasks of other ``items`` of the same order, such as the images' features."""
        other = copy.copy(self)
        other.unambiguous, other.ambiguous = self.unambiguous.on(items), self.ambiguous.on(items)
        return other

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`~data.episodes.Episode`, the ambiguous ones last; equal seeds give equal tasks."""
        sure = self.unambiguous.sample(tasks - tasks // 2, seed=mix_seed(seed, 0))
        other = self.ambiguous.sample(tasks // 2, seed=mix_seed(seed, 1))
        block = torch.randint(NUM_ATTRIBUTES, (tasks // 2,), generator=torch.Generator().manual_seed(mix_seed(seed, 2)))
        rows = torch.arange(tasks // 2)

        def both(name: str) -> Tensor:
            one, more = getattr(sure, name), getattr(other, name)
            return torch.cat([one, more.unflatten(1, (NUM_ATTRIBUTES, -1))[rows, block] if "query" in name else more])

        return Episode(both("support_x"), both("support_y"), both("query_x"), both("query_y"), 2)


def fewer_queries(episode: Episode) -> Episode:
    """Ambiguous tasks of :class:`AttributeSampler` with the first third of each class's queries in each block, rounded down, or
    one: in all as many as a task of one pair has, about, and of each pair equally many."""

    def some(queries: Tensor) -> Tensor:
        each = queries.unflatten(1, (NUM_ATTRIBUTES, 2, -1))  # of each block and class
        return each[:, :, :, : max(1, each.shape[3] // NUM_ATTRIBUTES)].flatten(1, 3)

    query_y = None if episode.query_y is None else some(episode.query_y)
    return episode._replace(query_x=some(episode.query_x), query_y=query_y)


def sampler_of(source: LabelledItems, spec: TaskSpec, *, split: str = "data") -> Any:
    """What draws tasks of any ``spec``, of attributes and of fixed labels too, from the items of a ``source``; errors name the
    ``split``.

    Raises:
        UserError: items that cannot give such tasks.
    """
    if spec.partition is not None:
        return FixedLabelSampler(source, spec, split=split)
    if spec.attributes is None:
        return EpisodeSampler(source, spec, split=split)
    if spec.attributes is Attributes.MIXED:
        return OnePairSampler(source, shot=spec.shot, queries=spec.queries)
    ambiguous = spec.attributes is Attributes.AMBIGUOUS
    return AttributeSampler(source, shot=spec.shot, queries=spec.queries, ambiguous=ambiguous, contested=True)
