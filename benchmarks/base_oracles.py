"""What a task's queries could tell of base classes under LwoF: ``python -m benchmarks.base_oracles RUN``.

RUN is a finished folder of ``python -m inference.svi_sib --protocols lwof``. For every guide of it: *Base* on validation
tasks, the base classes' outputs taken at the posterior's mean, and what is added to it, with 95 % intervals over tasks, by

* weights that are drawn to the base queries, each class counting for n items: by their labels; by the labels of all queries
  but the one that is classified, which is the most that other queries can say; and by guessed labels (two rounds of
  expectation and maximisation), of base queries alone or of all queries;
* outputs less half the logarithm of the share of the task's queries that a class has;
* features that are centred half-way on the task's queries;
* an offset of each class that makes all equally frequent on held-out images, which is no inference within a task.

Last, Base of the guide with steps less that of its reference without, over the held-out images of validation in place of tasks,
which share them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.base_and_new import BaseAndNewSampler
from data.episodes import EpisodeSampler
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.tables import align
from inference.meta.base_and_new import Fitted, fit_lwof, halves, in_space
from inference.meta.mapping import map_items
from inference.meta.options import SibOptions
from inference.runs.folder import RunFolder
from inference.runs.options import HERE, options_from_yaml
from inference.runs.tensors import load_features
from models.tasks.predictors import Predictor

TASKS, SEED = 500, 77
COUNTS = (10, 30, 100, 300)
SMOOTHING = 4.0
"""Queries that each class has beforehand in a task's shares."""


class BaseClasses(NamedTuple):
    """A guide's classifier of base classes.

    Attributes:
        predictor: ŷ(x, w).
        loc: means of the classes' weights, ``[base, D]``.
        variance: of the weights, the same shape.
    """

    predictor: Predictor
    loc: Tensor
    variance: Tensor

    def outputs(self, items: Tensor, weights: Tensor | None = None) -> Tensor:
        """E ŷ of prepared ``items`` ``[..., n, D]``: ``[..., n, base]``; with other means where ``weights``
        ``[..., base, D]`` are given."""
        return self.predictor.mean_outputs(items, self.loc if weights is None else weights, self.variance)

    def drawn(self, items: Tensor, shares: Tensor, count: float) -> Tensor:
        """Weights of their own length, in the direction of the mean of ``count`` items at the old direction and the ``items``
        ``[..., n, D]`` by their ``shares`` in each class, ``[..., n, base]``."""
        return self.at_length(count * F.normalize(self.loc, dim=-1) + shares.mT @ items)

    def at_length(self, directions: Tensor) -> Tensor:
        """Weights in the ``directions`` ``[..., base, D]``."""
        return self.loc.norm(dim=-1, keepdim=True) * F.normalize(directions, dim=-1)

    def by_others(self, items: Tensor, labels: Tensor, count: float) -> Tensor:
        """Outputs ``[..., n, base]`` of each of the ``items``, with weights that are :meth:`drawn` by the ``labels``
        ``[..., n]`` of all others."""
        shares = F.one_hot(labels, len(self.loc)).to(items.dtype)
        own = labels[..., None]
        sums = count * F.normalize(self.loc, dim=-1) + shares.mT @ items
        rest = sums.gather(-2, own.expand(*labels.shape, items.shape[-1])) - items  # of an item's class, without the item
        weights = self.loc[labels].norm(dim=-1, keepdim=True) * F.normalize(rest, dim=-1)
        variance = self.variance[labels].unsqueeze(-2)
        output = self.predictor.mean_outputs(items.unsqueeze(-2), weights.unsqueeze(-2), variance)[..., 0]
        return self.outputs(items, self.at_length(sums)).scatter(-1, own, output)

    def by_guesses(self, items: Tensor, count: float, rounds: int = 2) -> Tensor:
        """Outputs of the ``items`` with weights that are :meth:`drawn` by what the classifier takes these for."""
        outputs = self.outputs(items)
        for _ in range(rounds):
            outputs = self.outputs(items, self.drawn(items, outputs.softmax(-1), count))
        return outputs


def less_shares(outputs: Tensor) -> Tensor:
    """Outputs ``[..., n, base]`` less half the logarithm of each class's share of the n items, in units of an equal one."""
    queries, classes = outputs.shape[-2:]
    expected = queries / classes + SMOOTHING
    return outputs - 0.5 * ((outputs.softmax(-1).sum(-2, keepdim=True) + SMOOTHING) / expected).log()


def balancing(outputs: Tensor, rounds: int = 100) -> Tensor:
    """Offsets ``[base]`` with which all classes are equally probable on average over the ``outputs`` ``[n, base]``."""
    offsets = outputs.new_zeros(outputs.shape[-1])
    for _ in range(rounds):
        offsets = offsets - 0.5 * ((outputs + offsets).softmax(-1).mean(0) * len(offsets)).log()
    return offsets


class Held(NamedTuple):
    """What base classes are looked at on: held-out ``images`` ``[n, D]``, and tasks' ``base`` and ``new`` queries
    ``[tasks, n, D]`` with the ``labels`` of the former; all mapped and prepared by the predictor."""

    images: Tensor
    base: Tensor
    new: Tensor
    labels: Tensor


def gains(classes: BaseClasses, held: Held) -> dict[str, list[str]]:
    """Rows of the table: Base, and what is added to it."""
    before, every = classes.outputs(held.base), torch.cat([held.base, held.new], dim=-2)
    number, mean = held.base.shape[-2], every.mean(-2, keepdim=True)
    labels = F.one_hot(held.labels, len(classes.loc)).to(held.base.dtype)

    def right(outputs: Tensor) -> Tensor:
        return (outputs.argmax(-1) == held.labels).double().mean(-1)

    def row(change: Callable[[float], Tensor], counts: Sequence[float] = (0,)) -> list[str]:
        return [cell(right(change(count)) - right(before)) for count in counts]

    return {
        "Base": [f"{100 * float(right(before).mean()):.2f}"],
        "labels, its own too": row(lambda n: classes.outputs(held.base, classes.drawn(held.base, labels, n)), COUNTS),
        "labels of the others": row(lambda n: classes.by_others(held.base, held.labels, n), COUNTS),
        "guesses, base queries": row(lambda n: classes.by_guesses(held.base, n), COUNTS),
        "guesses, all queries": row(lambda n: classes.by_guesses(every, n)[..., :number, :], COUNTS),
        "less shares": row(lambda _: less_shares(before)),
        "centred": row(lambda _: classes.outputs(held.base - 0.5 * (mean - held.images.mean(0)))),
        "equally frequent": row(lambda _: before + balancing(classes.outputs(held.images))),
    }


def cell(values: Tensor) -> str:
    """Mean and interval of differences, in points."""
    return f"{100 * float(values.mean()):+.2f} ± {100 * confidence_interval(values):.2f}"


def main(arguments: Sequence[str]) -> None:
    run = RunFolder.existing(arguments[0])
    options = options_from_yaml(SibOptions, run.read_config(), run.config, HERE)
    features = load_features(run.features)
    images, _ = halves(features["held_out"])
    tasks = BaseAndNewSampler(EpisodeSampler(features["val"], options.spec(imbalance=None)), images, playing=False)
    rights: dict[int, Tensor] = {}
    for variant, fit in fit_lwof(options, run).items():
        with torch.no_grad():
            classes, held = looked_at(fit, tasks, map_items(fit.space, images).items)
            rights[variant.steps] = (classes.outputs(held.images).argmax(-1) == images.labels).double()
            found = gains(classes, held)
        table = [["", *(f"n = {count}" for count in COUNTS)]]
        table += [[name, *cells, *[""] * (len(COUNTS) - len(cells))] for name, cells in found.items()]
        print(f"\n{Path(arguments[0]).name}, {variant.name}\n{align(table)}")
    if len(rights) > 1:
        none, some = (rights[steps] for steps in sorted(rights))
        print(f"\nBase with steps less without, over {len(some)} images: {cell(some - none)}")


def looked_at(fit: Fitted, tasks: BaseAndNewSampler, images: Tensor) -> tuple[BaseClasses, Held]:
    """A guide's classifier, and what it is looked at on.

    Args:
        tasks: of features that are not mapped.
        images: mapped.
    """
    model = fit.objective.model
    prior, prepare = model.prior, model.predictor.prepare
    episode = in_space(tasks, fit.space).sample(TASKS, seed=SEED)
    new, base = prepare(episode.query_x).chunk(2, dim=1)
    held = Held(prepare(images), base, new, episode.query_y.chunk(2, dim=1)[1])
    return BaseClasses(model.predictor, prior.loc, (2 * prior.log_scale).exp()), held


if __name__ == "__main__":
    main(sys.argv[1:])
