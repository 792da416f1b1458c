"""Predictions for one's own task: labelled items of some classes, and any number of items without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.arguments import as_whole
from data.episodes import Episode, TaskSpec
from data.errors import UserError
from data.inputs import as_targets, as_tensor
from data.seeding import mix_seed
from inference.evaluation.evaluate import readings
from inference.evaluation.predictions import ClassPredictions
from inference.evaluation.predictive import place_of, predictive
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace, class_means

DRAWS = 200
"""Posterior draws behind probabilities and their intervals."""
NUMBERS_AT_ONCE = 2**24
"""Class probabilities under all draws that are in memory together."""


class Predicting(Protocol):
    """What is asked of a learner; see :class:`inference.meta.learner.FittedLearner`, which imports this module."""

    network: FeatureNetwork | None
    space: FeatureSpace
    spec: TaskSpec

    @property
    def model(self) -> nn.Module: ...

    @property
    def guide(self) -> nn.Module: ...

    def features(self, images: Tensor) -> Tensor: ...

    def check_way(self, way: int, queries: int = 2) -> None: ...


@dataclass(frozen=True)
class TaskPredictions(ClassPredictions):
    """Predicted classes of a task's queries.

    Attributes:
        distance: ``[n]``, from the nearest class mean of the support in the feature space, in units of the mean distance
            between the class means: 1 is as far from every class as the classes are from one another. The larger it is, the
            less an item looks like any of the classes.
    """

    distance: Tensor


def predict(
    learner: Predicting,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    *,
    steps: int | None = None,
    num_samples: int = DRAWS,
    batch: int | None = None,
    seed: int = 0,
    watch: Callable[[int], object] = lambda count: None,
) -> TaskPredictions:
    """Predict the classes of one task's queries, however many they are.

    The queries are shared out, at random, among batches of about as many as the guide was trained on; those of one batch shape
    one posterior together. So memory is bounded, and a query's prediction depends a little on the other queries.

    Args:
        learner: fitted.
        support_x, query_x: as :func:`~data.inputs.as_tensor` takes them; images are resized and converted to the network's
            shape. Features ``[n, D]`` for a learner without a network.
        support_y: ``[n]``, classes as whole numbers or names; classes may have unequal numbers of items.
        steps: K; the trained one when not given.
        num_samples: posterior draws.
        batch: the most queries that shape one posterior; as many per class as in training when not given.
        seed: of draws and batches.
        watch: called with the number of queries of each part that is done.

    Raises:
        UserError: items or labels that do not fit, no queries, or another way than the guide was built for.
    """
    steps = None if steps is None else as_whole(steps, "steps")
    num_samples, seed = as_whole(num_samples, "num_samples", 1), as_whole(seed, "seed")
    labels, names = as_targets(support_y)
    if not names:
        raise UserError("support_y holds real numbers: give whole numbers or names of classes")
    if sorted(set(labels.tolist())) != list(range(len(names))):
        names = tuple(str(label) for label in labels.unique().tolist())
        labels = labels.unique(return_inverse=True)[1]
    if len(names) < 2:
        raise UserError("support_y holds one class: a task has at least two")
    support, queries = (own_features(learner, items) for items in (support_x, query_x))
    if len(support) != len(labels):
        raise UserError(f"support_x has {len(support)} items and support_y {len(labels)} labels: give one label per item")
    return predict_features(
        learner, support, labels, queries, names, steps=steps, num_samples=num_samples, batch=batch, seed=seed, watch=watch
    )


def predict_features(
    learner: Predicting,
    support: Tensor,
    labels: Tensor,
    queries: Tensor,
    class_names: Sequence[str],
    *,
    steps: int | None = None,
    num_samples: int = DRAWS,
    batch: int | None = None,
    seed: int = 0,
    watch: Callable[[int], object] = lambda count: None,
) -> TaskPredictions:
    """:func:`predict` on features in the learner's space.

    Args:
        learner: fitted.
        support, queries: ``[n, D]``, on the CPU.
        labels: ``[support]`` int64.
        class_names: one per class.
        steps, num_samples, batch, seed, watch: see :func:`predict`.

    Raises:
        UserError: another way than the guide was built for, no queries, or a ``batch`` below 1.
    """
    if not len(queries):
        raise UserError("query_x has no items: give one at least")
    batch = None if batch is None else as_whole(batch, "batch", 1)
    names = tuple(class_names)
    most = batch or len(names) * learner.spec.queries
    learner.check_way(len(names), min(len(queries), most))
    guide = list(readings(learner.guide, steps).values())[-1]
    device, dtype = place_of(learner.guide, learner.model, learner.space)
    task = Episode(support[None], labels[None], queries[None], None, len(names)).to(device, dtype=dtype)
    predicted: list[ClassPredictions] = []
    orders: list[Tensor] = []
    for rows in shares(len(queries), most, at_once=max(1, NUMBERS_AT_ONCE // (num_samples * len(names))), seed=seed):
        repeated = (task.support_x.expand(len(rows), -1, -1), task.support_y.expand(len(rows), -1))
        part = Episode(*repeated, task.query_x[0][rows], None, len(names))
        draws = predictive(learner.model, guide, part, num_samples=num_samples, seed=seed).labels.probs
        predicted.append(ClassPredictions.from_draws(draws.flatten(1, 2), names))
        orders.append(rows.flatten())
        watch(rows.numel())
    back = torch.cat(orders).argsort()
    joined = ClassPredictions.concatenate(predicted)
    numbers = {name: getattr(joined, name)[back] for name in vars(joined) if name != "class_names"}
    return TaskPredictions(**numbers, class_names=names, distance=relative_distance(support, labels, queries))


def own_features(learner: Predicting, items: Any) -> Tensor:
    """Features ``[n, D]`` of one's own items in the learner's space, on the CPU."""
    network = learner.network
    given = as_tensor(items, image_shape=None if network is None else network.image_shape)
    return learner.features(given).cpu()


def shares(count: int, most: int, *, at_once: int, seed: int) -> Iterator[Tensor]:
    """Shuffled indices ``[tasks, queries]`` of ``count`` queries in parts of nearly equal size, none above ``most``.

    Args:
        at_once: how many queries, more or less, are given at a time.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(seed)))
    tasks = -(-count // most)
    small, larger = divmod(count, tasks)  # the first `larger` tasks have one query more
    cut = larger * (small + 1)
    for part, size in ((order[:cut], small + 1), (order[cut:], small)):
        yield from part.view(-1, size).split(max(1, at_once // size)) if len(part) else ()


def relative_distance(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """:attr:`TaskPredictions.distance` of ``queries`` ``[n, D]`` from the class means of ``support`` ``[m, D]`` with ``labels``
    ``[m]``."""
    support, queries = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (support, queries))
    means = class_means(support, labels)
    exact = "donot_use_mm_for_euclid_dist"  # as a difference of squares it would depend on how many queries there are
    between = torch.pdist(means).mean().clamp_min(torch.finfo(means.dtype).tiny)
    return torch.cat([torch.cdist(part, means, compute_mode=exact).amin(-1) for part in queries.split(10_000)]) / between
