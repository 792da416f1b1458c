"""Few-shot tasks: whole batches of them as tensors, drawn without a loop over images."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from data.arguments import as_number, as_truth, as_whole
from data.errors import DataWarning, UserError
from data.items import LabelledItems


class Episode(NamedTuple):
    """A batch of tasks; ``model(*episode)`` and ``guide(*episode)`` take it whole.

    Attributes:
        support_x: ``[tasks, way * shot, *item_shape]``.
        support_y: ``[tasks, way * shot]`` int64 in ``0 .. way - 1`` (regression: ``[tasks, support]`` floats).
        query_x: ``[tasks, query, *item_shape]``.
        query_y: ``[tasks, query]``, hidden from the guide; ``None`` at prediction time.
        way: classes per task, 1 in regression; ``None`` where only the support labels tell.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor | None = None
    way: int | None = None

    @property
    def support_labels(self) -> Tensor:
        """The support's targets as queries number them: ``support_y`` itself."""
        return self.support_y

    def to(self, *args, **kwargs) -> Episode:
        """Move every tensor, as ``Tensor.to`` does; a dtype changes floating-point tensors alone."""
        given = args[0] if args and isinstance(args[0], str | torch.device) else kwargs.get("device")
        device = None if given is None else torch.device(given)
        dtype = kwargs.get("dtype", next((a for a in args if isinstance(a, torch.dtype)), None))

        def move(tensor: Tensor) -> Tensor:
            there = device is not None and (tensor.device.type, device.type) == ("cpu", "cuda")  # copies there need no waiting
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=there)

        query_y = None if self.query_y is None else move(self.query_y)
        return Episode(move(self.support_x), move(self.support_y), move(self.query_x), query_y, self.way)

    def tasks(self, chosen: slice | Tensor) -> Episode:
        """Some of the tasks, by a slice or by indices ``[n]``."""
        query_y = None if self.query_y is None else self.query_y[chosen]
        return Episode(self.support_x[chosen], self.support_y[chosen], self.query_x[chosen], query_y, self.way)

    def on_support(self) -> Episode:
        """The same tasks with the support set as queries: its own labels are scored."""
        return self._replace(query_x=self.support_x, query_y=self.support_y)

    def unlabelled(self) -> Episode:
        """The same tasks without the query labels."""
        return self._replace(query_y=None)


class Attributes(StrEnum):
    """Tasks of two attributes out of three, see :class:`~data.ambiguous.AttributeSampler`."""

    UNAMBIGUOUS = "unambiguous"
    """The support tells which two."""
    AMBIGUOUS = "ambiguous"
    """It does not, and the queries are a block for each of the three pairs that fit it."""
    MIXED = "mixed"
    """Half of the tasks are unambiguous; the other half are ambiguous, each with the queries of one pair alone."""


def as_attributes(given: str) -> Attributes:
    """The kind of tasks that is ``given`` by name.

    Raises:
        UserError: there is none of this name.
    """
    if given not in set(Attributes):
        raise UserError(f"`attributes={given}`: choose one of {', '.join(Attributes)}")
    return Attributes(given)


@dataclass(frozen=True)
class TaskSpec:
    """What a task looks like.

    Args:
        way: classes per task.
        shot: support items per class; 0 where classes keep their meaning from task to task.
        queries: query items per class (on average, where tasks are imbalanced).
        imbalance: concentration α of a symmetric Dirichlet over the task's classes; ``None`` for exactly ``queries`` items of
            each. A task draws its class proportions p ~ Dirichlet(α, …, α), and its query counts are way · queries · p, rounded
            by largest remainders to keep their sum (Veilleux et al. 2021, there α = 2). Where these ask a class
            for more items than it has beside the support, p is drawn again. So the law is the Dirichlet exactly where every
            class has shot + way · queries items, and otherwise the Dirichlet *truncated* at what the classes can serve, whose
            proportions vary less; ``EpisodeSampler.acceptance`` says how near it is.
        within_alphabet: whether all classes of a task are of one alphabet, which is what stands before the last ``/`` of their
            names. Each alphabet is as likely as any other.
        described: whether the support of a class is its first item, a description of it, and not one of its other items, which
            are the queries: zero-shot tasks, whose ``shot`` is 1.
        attributes: which tasks of two attributes, whose items are of eight kinds and whose classes are two; ``None`` where
            classes of items are those of tasks.
        partition: seed by which classes are dealt out to labels that they keep from task to task, see
            :class:`~data.fixed_labels.FixedLabelSampler`; ``None`` where they are numbered anew in each task.

    Raises:
        UserError: an argument that is no such number, several descriptions of a class, attributes of other tasks, or a
            partition of classes of one alphabet, of descriptions or of attributes.
    """

    way: int = 5
    shot: int = 1
    queries: int = 15
    imbalance: float | None = None
    within_alphabet: bool = False
    described: bool = False
    attributes: Attributes | None = None
    partition: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("way", 2), ("shot", 0), ("queries", 1)):
            object.__setattr__(self, name, as_whole(getattr(self, name), name, least))  # frozen from here on
        if self.imbalance is not None:
            object.__setattr__(self, "imbalance", as_number(self.imbalance, "imbalance"))
        for name in ("within_alphabet", "described"):
            object.__setattr__(self, name, as_truth(getattr(self, name), name))
        if self.described and self.shot != 1:
            raise UserError(f"`shot={self.shot}`: classes have one description each: leave out `shot`")
        if self.attributes is not None:
            object.__setattr__(self, "attributes", as_attributes(self.attributes))
            if self.way != 2:
                raise UserError(f"`way={self.way}`: a task of attributes has two classes: give `way=2`")
            if self.imbalance is not None or self.within_alphabet or self.described:
                raise UserError("a task of attributes is balanced, and its classes are attributes: leave out what says else")
        if self.partition is not None:
            object.__setattr__(self, "partition", as_whole(self.partition, "partition"))
            if self.within_alphabet or self.described or self.attributes is not None:
                raise UserError(
                    "classes that keep their labels are any classes of items: leave out `partition`, or what says else"
                )

    @property
    def shape(self) -> str:
        """In words, such as ``5-way 1-shot``."""
        return f"{self.way}-way {self.shot}-shot{' within alphabets' if self.within_alphabet else ''}"

    @property
    def guess(self) -> float:
        """What equal probabilities cost, nats per task."""
        blocks = 3 if self.attributes is Attributes.AMBIGUOUS else 1
        return blocks * self.way * self.queries * math.log(self.way)

    @property
    def balanced(self) -> bool:
        """Whether every class has equally many queries."""
        return self.imbalance is None


def check_classes(classes: int, way: int, split: str) -> None:
    """Refuse a ``way`` that so many ``classes`` of a ``split`` cannot give.

    Raises:
        UserError: they are fewer.
    """
    if classes < way:
        raise UserError(f"{split}: {classes} classes are too few for {way}-way tasks: lower `way`")


class EpisodeSampler:
    """Draws batches of tasks from labelled items.

    Classes of a task, items of a class, and the order of both are uniform without replacement. Every call takes its own
    seed, so that task number ``i`` is the same whatever was drawn before it.

    Args:
        source: images or features with labels.
        spec: the tasks' shape.
        split: named in error messages.

    Attributes:
        acceptance: for imbalanced tasks, the share of drawn proportions that the smallest classes can serve; 1 means that the
            proportions are exactly Dirichlet. Below ``WARN_BELOW`` a warning says so.

    Raises:
        UserError: no shot, fewer classes (within alphabets: of an alphabet) than the way, classes without alphabet, a class
            with fewer items than shot + queries, or imbalanced tasks of which the smallest classes serve less than
            ``REFUSE_BELOW``.
    """

    WARN_BELOW, REFUSE_BELOW = 0.9, 0.01

    def __init__(self, source: LabelledItems, spec: TaskSpec, *, split: str = "data") -> None:
        counts = source.counts
        if not spec.shot:
            raise UserError(f"{split}: classes are numbered anew in each task, and shot = 0 leaves nothing to tell them by")
        check_classes(source.num_classes, spec.way, split)
        self.alphabets = numbered_alphabets(source.class_names, spec.way, split) if spec.within_alphabet else None
        smallest = int(counts.argmin())
        if counts[smallest] < spec.shot + spec.queries:
            raise UserError(
                f"{split}: class {source.class_names[smallest]!r} has {int(counts[smallest])} images, fewer than "
                f"shot + queries = {spec.shot} + {spec.queries}: lower `shot` or `queries`"
            )
        self.source, self.spec, self.counts = source, spec, counts
        self._by_class = torch.argsort(source.labels, stable=True)
        self._start = counts.cumsum(0) - counts
        self._fewest, self._most = int(counts[smallest]), int(counts.max())
        self.acceptance = 1.0 if spec.balanced else self._measure_acceptance()
        if self.acceptance < self.WARN_BELOW:
            finding = (
                f"{split}: class {source.class_names[smallest]!r} has {int(counts[smallest])} images, and imbalanced tasks of "
                f"{spec.way * spec.queries} queries ask for more of one class in {1 - self.acceptance:.0%} of the draws"
            )
            if self.acceptance < self.REFUSE_BELOW:
                raise UserError(f"{finding}: lower queries")
            finding += ": these are drawn again, so classes are less unequal; lower queries"
            warnings.warn(finding, DataWarning, stacklevel=2)

    @property
    def items(self) -> Tensor:
        """What tasks are made of."""
        return self.source.items

    def on(self, items: Tensor) -> EpisodeSampler:
        """The same tasks of other ``items`` of the same order, such as the images' features."""
        other = copy.copy(self)
        other.source = replace(self.source, items=items)
        return other

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`Episode`; equal seeds give equal tasks."""
        support, query, query_y, _ = self.sample_indices(tasks, seed=seed)
        support_y = torch.arange(self.spec.way).repeat_interleave(self.spec.shot).expand(tasks, -1)
        items = self.source.items
        return Episode(rows_of(items, support), support_y, rows_of(items, query), query_y, self.spec.way)

    def sample_indices(self, tasks: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices into the source instead of items.

        Raises:
            UserError: ``tasks`` below 1, or a seed that is none.

        Returns:
            support ``[tasks, way * shot]`` (grouped by class), query ``[tasks, way * queries]``, query labels of the same
            shape, and the tasks' classes ``[tasks, way]``.
        """
        tasks, spec, generator = as_whole(tasks, "tasks", 1), self.spec, torch.Generator().manual_seed(as_whole(seed, "seed"))
        classes = self._classes(tasks, generator)
        available = self.counts[classes]  # [tasks, way]
        query_counts = None if spec.balanced else self._query_counts(available - spec.shot, generator)
        depth = spec.shot + (spec.queries if query_counts is None else int(query_counts.max()))
        keys = torch.rand(tasks, spec.way, self._most, generator=generator)
        if self._fewest < self._most:
            keys.masked_fill_(torch.arange(self._most) >= available[..., None], -1.0)
        if spec.described:
            keys[..., 0] = 1.0  # above all others
        order = keys.topk(depth, dim=-1).indices  # a random ordered choice of `depth` items per class
        if query_counts is not None:
            order = order.clamp_max(available[..., None] - 1)  # of a class with fewer items, whose last ones nobody asks for
        chosen = self._by_class[self._start[classes][..., None] + order]
        support = chosen[..., : spec.shot].flatten(1)
        if query_counts is None:
            query_y = torch.arange(spec.way).repeat_interleave(spec.queries).repeat(tasks, 1)
            return support, chosen[..., spec.shot :].flatten(1), query_y, classes
        # query j of a task belongs to the class whose cumulative count passes j
        position = torch.arange(spec.way * spec.queries).expand(tasks, -1).contiguous()
        query_y = torch.searchsorted(query_counts.cumsum(-1), position, right=True)
        rank = position - (query_counts.cumsum(-1) - query_counts).gather(1, query_y)
        query = chosen.flatten(1).gather(1, query_y * depth + spec.shot + rank)
        return support, query, query_y, classes

    def _classes(self, tasks: int, generator: torch.Generator) -> Tensor:
        """``[tasks, way]``: different classes in random order."""
        keys = torch.rand(tasks, len(self.counts), generator=generator)
        if self.alphabets is not None:
            chosen = torch.randint(int(self.alphabets.max()) + 1, (tasks, 1), generator=generator)
            keys.masked_fill_(self.alphabets != chosen, -1.0)
        return keys.topk(self.spec.way, dim=-1).indices

    def _measure_acceptance(self, draws: int = 4096) -> float:
        """The share of drawn query counts that the smallest classes can serve."""
        smallest = self.counts.sort().values[: self.spec.way] - self.spec.shot
        if int(smallest[0]) >= self.spec.way * self.spec.queries:  # even if all queries are of one
            return 1.0
        return float((draw_counts(self.spec, draws, torch.Generator().manual_seed(0)) <= smallest).all(-1).float().mean())

    def _query_counts(self, capacity: Tensor, generator: torch.Generator) -> Tensor:
        """``[tasks, way]`` int64 of imbalanced tasks, summing to ``way * queries`` in each, never above ``capacity``."""
        counts = draw_counts(self.spec, len(capacity), generator)
        while len(refused := (counts > capacity).any(-1).nonzero()[:, 0]):  # ends: REFUSE_BELOW bounds the share refused
            counts[refused] = draw_counts(self.spec, len(refused), generator)
        return counts


def rows_of(items: Tensor, chosen: Tensor) -> Tensor:
    """``items[chosen]`` for indices of any shape; whole rows are copied at once, many times as fast for images."""
    places = chosen.flatten().to(items.device, non_blocking=items.is_cuda)  # a CPU would read them before they have come
    return items.index_select(0, places).unflatten(0, chosen.shape)


def numbered_alphabets(class_names: Sequence[str], way: int, split: str) -> Tensor:
    """``[classes]`` int64: the number of the alphabet that each class is of.

    Args:
        way: classes that a task takes of one alphabet.
        split: named in error messages.

    Raises:
        UserError: a class is of none, or an alphabet has too few.
    """
    alphabets = [name.rpartition("/")[0] for name in class_names]
    if "" in alphabets:
        alone = class_names[alphabets.index("")]
        raise UserError(
            f"{split}: the class {alone!r} is of no alphabet: for tasks within one, classes are named alphabet/character"
        )
    sizes = Counter(alphabets)
    least = min(sizes, key=lambda alphabet: sizes[alphabet])
    if sizes[least] < way:
        raise UserError(
            f"{split}: the alphabet {least} has {sizes[least]} classes, too few for {way}-way tasks within alphabets: lower "
            "`way`, or leave it out"
        )
    numbers = {alphabet: number for number, alphabet in enumerate(sizes)}
    return torch.tensor([numbers[alphabet] for alphabet in alphabets])


def draw_counts(spec: TaskSpec, tasks: int, generator: torch.Generator) -> Tensor:
    """``[tasks, way]`` query counts of Dirichlet proportions, by largest remainders, whatever classes can serve; of an
    imbalanced ``spec``."""
    total = spec.way * spec.queries
    gamma = torch._standard_gamma(torch.full((tasks, spec.way), float(spec.imbalance or 0)), generator=generator)
    quota = total * gamma / gamma.sum(-1, keepdim=True)
    counts = quota.floor().long()
    rank = (quota - counts).argsort(-1, descending=True).argsort(-1)
    return counts + (rank < total - counts.sum(-1, keepdim=True))
