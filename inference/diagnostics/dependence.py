"""On what predictions depend: on the support, on the other queries; and what little dependence says of new tasks.

A model that has learned the training tasks by heart does not read a support. Source of the question and of the bound: Yin et
al. 2020, "Meta-learning without memorization".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.arguments import as_number, as_whole
from data.episodes import Episode
from data.errors import UserError
from data.seeding import mix_seed, seeded
from inference.diagnostics.regret import mixture_log_density
from inference.evaluation.predictive import predictive

SUPPORTS = 16
POINTS = 32
"""Targets that are drawn from each predictive whose entropy is not a sum over classes."""
TARGETS = 1  # a stream of random numbers


@torch.no_grad()
def support_information(
    model: nn.Module,
    guide: nn.Module,
    episode: Episode,
    *,
    exclusive: bool,
    supports: int = SUPPORTS,
    num_samples: int = 32,
    seed: int = 0,
) -> Tensor:
    """I(ŷ; D given x) = H[E_D q(y given x, D)] − E_D H[q(y given x, D)], nats per query: ``[tasks]``, means over queries.

    0 of predictions that do not read the support D, and never above log M for M supports. Each support has the same posterior
    draws. Entropies are sums over the values of labels that have finitely many; of others the difference is estimated by
    :data:`POINTS` targets drawn from each predictive, or a few more, without bias, so that it may come out below 0.

    Args:
        model, guide: see :func:`~inference.evaluation.predictive.predictive`.
        episode: query labels are not read.
        exclusive: whether a class has another label in each task. The supports are then the task's own with its labels
            renamed at random, M of them rounded up to whole turns in which each class has each label once, so that what treats
            labels alike has exactly log(way) less its mean entropy. Otherwise they are those of M other tasks.
        supports: M.

    Raises:
        UserError: fewer than M + 1 tasks to take supports from, or regression where labels are to be renamed.
    """
    supports = as_whole(supports, "supports", 1)
    given = renamed_supports if exclusive else other_supports
    how: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "batch": len(episode.query_x)}
    said = [predictive(model, guide, one, **how).labels for one in given(episode, supports, seed)]
    if said[0].has_enumerate_support:
        own = torch.stack([probabilities(labels) for labels in said])  # [M, values, tasks, query]
        information = entropy(own.mean(0)) - entropy(own).mean(0)
    else:
        with seeded(seed, TARGETS, device=episode.query_x.device):
            information = sampled_information(said)
    return information.mean(-1)


def probabilities(labels: Any) -> Tensor:
    """Of each value, averaged over draws, in double precision: batch_shape ``[draws, tasks, query]`` to ``[values, tasks,
    query]``."""
    return labels.log_prob(labels.enumerate_support(expand=False)).double().exp().mean(1)


def entropy(probabilities: Tensor) -> Tensor:
    """−Σ p log p, nats: ``[..., values, tasks, query]`` to ``[..., tasks, query]``."""
    return torch.special.entr(probabilities).sum(-3)


def sampled_information(said: list[Any]) -> Tensor:
    """1/M Σ_m E_{y ~ q_m} [log q_m(y) − log 1/M Σ_k q_k(y)], nats, by draws of y: ``[tasks, query]``.

    Args:
        said: M predictives, the mixtures of distributions of batch_shape ``[draws, tasks, query]``.
    """
    total = torch.zeros((), dtype=torch.float64, device=said[0].mean.device)
    for m, labels in enumerate(said):
        y = labels.sample((-(-POINTS // labels.batch_shape[0]),)).flatten(0, 1)  # as many of each draw of the weights
        under = torch.stack([mixture_log_density(other.log_prob(y[:, None]).double(), 1) for other in said])  # [M, points, ...]
        total = total + (under[m] - mixture_log_density(under)).mean(0)
    return total / len(said)


def renamed_supports(episode: Episode, supports: int, seed: int) -> list[Episode]:
    """The same tasks with their labels renamed, those of the queries too: at least so many ``supports``, in whole turns.

    Raises:
        UserError: regression.
    """
    if episode.support_y.is_floating_point():
        raise UserError("targets of regression cannot be renamed: choose `exclusive=False`")
    way = episode.way or int(episode.support_y.max()) + 1
    generator = torch.Generator().manual_seed(mix_seed(seed, way))
    turns = torch.stack([torch.randperm(way, generator=generator) for _ in range(-(-supports // way))])
    names = (turns[:, None] + torch.arange(way)[:, None]).remainder(way).flatten(0, 1).to(episode.support_y.device)

    def renamed(labels: Tensor, name: Tensor) -> Tensor:
        return torch.where(labels < 0, labels, name[labels.clamp_min(0)])  # what is not known stays so

    query_y = partial(renamed, episode.query_y) if episode.query_y is not None else lambda name: None
    return [episode._replace(support_y=renamed(episode.support_y, name), query_y=query_y(name), way=way) for name in names]


def other_supports(episode: Episode, supports: int, seed: int) -> list[Episode]:
    """The same queries with the supports of other tasks, of different ones in each of the ``supports``.

    Raises:
        UserError: there are not so many other tasks.
    """
    tasks = len(episode.query_x)
    if tasks <= supports:
        raise UserError(f"{tasks} tasks have no {supports} others to take supports from: give {supports + 1} tasks, or more")
    generator = torch.Generator().manual_seed(mix_seed(seed, tasks))
    shifts = torch.randperm(tasks - 1, generator=generator)[:supports].add(1).tolist()
    rolled = ((episode.support_x.roll(shift, 0), episode.support_y.roll(shift, 0)) for shift in shifts)
    return [episode._replace(support_x=x, support_y=y) for x, y in rolled]


@torch.no_grad()
def query_information(model: nn.Module, guide: nn.Module, episode: Episode, *, num_samples: int = 32, seed: int = 0) -> Tensor:
    """NLL of the queries one at a time less NLL of all together, nats per query: ``[tasks]``. What seeing the other queries is
    worth; 0 of a method that predicts each query by itself.

    Args:
        model, guide: see :func:`~inference.evaluation.predictive.predictive`; both have the same posterior draws.
        episode: with query labels.

    Raises:
        UserError: no query labels.
    """
    labels = episode.query_y
    if labels is None:
        raise UserError("query information needs the queries' labels: give `query_y`")
    how: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "batch": len(labels)}

    def score(part: slice) -> Tensor:
        asked = episode._replace(query_x=episode.query_x[:, part], query_y=labels[:, part])
        return predictive(model, guide, asked, **how).log_predictive(labels[:, part])

    alone = torch.cat([score(slice(i, i + 1)) for i in range(labels.shape[1])], dim=-1)
    return (score(slice(None)) - alone).mean(-1)


@torch.no_grad()
def is_transductive(model: nn.Module, guide: nn.Module, episode: Episode, *, num_samples: int = 8, seed: int = 0) -> bool:
    """Whether predictions of a query change where another query is another item.

    The first query of each task becomes a copy of its last one; differences within a hundred roundings do not count.

    Args:
        model, guide: see :func:`~inference.evaluation.predictive.predictive`.
        episode: query labels are not read.

    Raises:
        UserError: fewer than two queries.
    """
    if episode.query_x.shape[1] < 2:
        raise UserError("whether one query changes another takes two: give tasks two queries or more")
    changed = episode.query_x.clone()
    changed[:, 0] = changed[:, -1]
    how: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    before, after = (
        numbers(predictive(model, guide, episode._replace(query_x=x, query_y=None), **how).labels)
        for x in (episode.query_x, changed)
    )
    tolerance = 100 * torch.finfo(before.dtype).eps * before.abs().amax()
    return bool(((before - after)[:, :, :, 1:].abs() > tolerance).any())


def numbers(labels: Any) -> Tensor:
    """What a predictive says of each query: probabilities of each value, or mean and variance, ``[numbers, draws, tasks, query,
    *event]``."""
    if labels.has_enumerate_support:
        return labels.log_prob(labels.enumerate_support(expand=False)).exp()
    return torch.stack([labels.mean, labels.variance])


@dataclass(frozen=True)
class PacBayesBound:
    """With probability 1 − δ over training tasks, the expected loss of a new task's query is at most :attr:`value`.

    It holds for all posteriors at once, under a prior that does not depend on the training tasks, and for a loss in [0, 1]
    alone. From 1 on it says nothing: it is vacuous, as it always is where the rate is above :meth:`largest_rate`. That is 11
    nats for 20 000 tasks of 15 queries at δ = 0.05, and 114 for 75 queries: few networks have so little.

    Source: Yin et al. 2020, theorem 1, equation 9, of McAllester's form.

    Args:
        loss: mean over the training tasks' queries, expected over the posterior.
        rate: KL(q ‖ p) of what all tasks share, nats.
        tasks: n, training tasks.
        queries: K, in each of them.
        delta: δ.

    Raises:
        UserError: a loss outside [0, 1], a negative rate, fewer than two tasks or queries, or δ outside (0, 1].
    """

    loss: float
    rate: float
    tasks: int
    queries: int
    delta: float = 0.05

    def __post_init__(self) -> None:
        for name in ("tasks", "queries"):
            as_whole(getattr(self, name), name, 2)
        for name, least, most in (("loss", True, 1.0), ("rate", True, math.inf), ("delta", False, 1.0)):
            if as_number(getattr(self, name), name, zero=least) > most:
                raise UserError(f"`{name}={getattr(self, name)}` must be 1 at most: the bound is one of losses in [0, 1]")

    @property
    def slack(self) -> float:
        """√(1 / 2(K − 1)) + √(1 / 2(n − 1))."""
        return math.sqrt(0.5 / (self.queries - 1)) + math.sqrt(0.5 / (self.tasks - 1))

    @property
    def confidence(self) -> float:
        """log(n (K + 1) / δ), nats."""
        return math.log(self.tasks * (self.queries + 1) / self.delta)

    @property
    def value(self) -> float:
        """The bound: the loss, and √(rate + confidence) times the slack."""
        return self.loss + self.slack * math.sqrt(self.rate + self.confidence)

    @property
    def is_vacuous(self) -> bool:
        """Whether it is 1 or more."""
        return self.value >= 1

    @property
    def beta(self) -> float:
        """The weight of the rate beside the mean loss, per nat, that the bound's expansion to first order in the rate has; of
        an objective that is a sum over tasks and queries, n K times as much."""
        return self.slack / (2 * math.sqrt(self.confidence))

    def largest_rate(self) -> float:
        """The rate, nats, from which on the bound is vacuous even where the training loss is 0; below 0 where it always is."""
        return self.slack**-2 - self.confidence

    def __str__(self) -> str:
        vacuous = f" (vacuous: at 0 loss the rate may be {max(self.largest_rate(), 0.0):.3g} nats)" if self.is_vacuous else ""
        return f"{self.value:.3f}{vacuous}"
