"""Which tasks a guide is trained on, and which choose its checkpoint and its steps."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from data.ambiguous import sampler_of
from data.episodes import TaskSpec
from data.errors import DataWarning, UserError
from data.items import LabelledItems
from data.mixed import Extent, MixedSampler, VariedSampler
from inference.meta.task_options import FewShotOptions

MIXED_IMBALANCE = 2.0
"""Concentration of the Dirichlet that draws query proportions of half the training tasks."""
MOST_WAYS, MOST_SHOTS = 20, 5
"""Training tasks have so many classes, and support items of each, at most, where the options do not say."""

Kinds: TypeAlias = tuple[Any, ...]
"""Samplers of tasks, each of one shape, that count alike."""


def task_sampler(options: FewShotOptions, part: LabelledItems, split: str, spec: TaskSpec | None = None) -> Any:
    """Tasks of one shape: half of them balanced, half with unequal class proportions, unless the options ask for one kind or
    the classes have too few images for the second.

    Args:
        part: the classes.
        split: named in error messages.
        spec: the shape; the options' own when not given.
    """
    spec = spec or options.spec()
    usual = sampler_of(part, spec, split=f"{split} split")
    if not options.mixed or not spec.balanced or spec.attributes is not None:
        return usual
    with warnings.catch_warnings():  # training tasks need not have the proportions that they claim
        warnings.simplefilter("ignore", DataWarning)
        try:
            unequal = sampler_of(part, replace(spec, imbalance=MIXED_IMBALANCE), split=f"{split} split")
        except UserError:
            return usual
    return MixedSampler((usual, unequal))


def ranges(options: FewShotOptions, part: LabelledItems) -> tuple[Extent, Extent]:
    """Ways and shots of training tasks: what the options say, or else from the usual way to 20 and from one shot to five, where
    the guide takes any number; as far as there are classes and images of ``part`` for it."""
    served = max(options.shot, int(part.counts.min()) - options.queries)
    ways = options.train_way or Extent(options.way, max(options.way, MOST_WAYS) if options.any_way else options.way)
    shots = options.train_shot or Extent(1, 1 if options.described else max(options.shot, MOST_SHOTS))
    if options.attributed:  # of fewer items no support tells the pair
        shots = options.train_shot or Extent(options.shot, options.shot)
    most = most_ways(options, part)
    ways = Extent(min(ways.least, most), min(ways.most, most))
    return ways, Extent(min(shots.least, served), min(shots.most, served))


def most_ways(options: FewShotOptions, part: LabelledItems) -> int:
    """How many classes of ``part`` a task can have."""
    if options.spec().within_alphabet:
        return min(Counter(name.rpartition("/")[0] for name in part.class_names).values())
    return part.num_classes


def varied(options: FewShotOptions, part: LabelledItems, split: str) -> VariedSampler:
    """Tasks of all the shapes that the options train on; ``split`` is named in error messages."""
    make = partial(task_sampler, options, part, split)  # processes that are started get a copy, which a lambda has not
    return VariedSampler(make, options.spec(), *ranges(options, part))


def training_tasks(options: FewShotOptions, part: LabelledItems) -> VariedSampler:
    """What a guide is trained on."""
    return varied(options, part, "train")


def kinds(options: FewShotOptions, part: LabelledItems, split: str, shapes: LabelledItems | None = None) -> Kinds:
    """Tasks of a few of these shapes: the usual one, the one with most shots and the one with most ways.

    Args:
        part, split: as for :func:`task_sampler`.
        shapes: the classes that say how many ways and shots there can be; ``part`` when not given.
    """
    ways, shots = ranges(options, shapes or part)
    usual = options.way, options.shot
    asked = dict.fromkeys((usual, (options.way, max(shots.most, options.shot)), (max(ways.most, options.way), options.shot)))
    sampler = varied(options, part, split)
    return tuple(sampler.of(way, shot) for way, shot in asked)


def deciding(options: FewShotOptions, parts: Mapping[str, LabelledItems]) -> Kinds:
    """Training and validation tasks, of ``parts`` by the names of splits, which decide about trained steps together: validation
    classes alone are few, so that by chance all of them may be harder, or easier, than new classes are."""
    few = min((parts["train"], parts["val"]), key=partial(most_ways, options))
    both = (kinds(options, parts[split], split, few) for split in ("train", "val"))
    return tuple(MixedSampler(pair) for pair in zip(*both, strict=True))
