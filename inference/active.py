"""Active learning: which support item of a task should be labelled next, by what a model and its guide say of it.

A pool of items stands in the place of a task's support. A few labels are known at first; then one is asked for in turn, and the
programs are run anew with it. Any model and guide will do, for all is read from the predictive distribution of ``labels``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.arguments import as_whole
from data.episodes import Episode
from data.errors import UserError
from data.seeding import mix_seed
from data.semi_supervised import Unlabelled, present, ranks
from inference.evaluation.predictive import Predictive, predictive, site_device

CHOICES = 1  # a stream of random numbers
ROUNDINGS = 100
"""Scores that differ by fewer roundings of the largest are equal."""


class Acquisition(StrEnum):
    """What is asked for."""

    RANDOM = "random"
    """Any item, each as likely as the others."""
    ENTROPY = "entropy"
    """The item whose label is least certain, by the entropy of its predictive distribution; of classes alone."""
    BALD = "bald"
    """The item whose label says most about the weights: their mutual information under the posterior."""
    VARIANCE = "variance"
    """The item with the largest predictive variance; of regression alone."""
    ATTENTION = "attention"
    """The item that a program asks for by itself, one for each query; of no other."""


def acquisitions_of(predicted: Predictive) -> tuple[Acquisition, ...]:
    """What can be asked for by the predictions of a program that does not ask by itself: at random, what is least certain, and
    with a posterior what says most about it."""
    certain = Acquisition.ENTROPY if predicted.labels.has_enumerate_support else Acquisition.VARIANCE
    return Acquisition.RANDOM, certain, *([Acquisition.BALD] if predicted.num_draws > 1 else [])


class Turn(NamedTuple):
    """What is known at one time, and said of the queries.

    Attributes:
        asked: labels that have been asked for, of each task.
        known: whose labels are known, bool ``[tasks, pool]``.
        predicted: what the programs then say of the queries.
    """

    asked: int
    known: Tensor
    predicted: Predictive


def first_known(pool: Episode, labels: int, *, seed: int) -> Tensor:
    """Which items of a pool are labelled from the beginning: a random choice of ``labels`` of each class, or of regression so
    many in all; bool ``[tasks, pool]``.

    Raises:
        UserError: a class, or the pool, has fewer.
    """
    labels = as_whole(labels, "labels")
    of_values = pool.support_y.is_floating_point()
    rank, count = ranks(torch.zeros_like(pool.support_y) if of_values else pool.support_y, seed)
    if bool((count < labels).any()):
        raise UserError(f"`labels={labels}` are more than there are items of a class: lower it, or enlarge the pool")
    return (rank < labels).to(pool.support_y.device)


@torch.no_grad()
def ask(
    model: nn.Module,
    guide: nn.Module,
    pool: Episode,
    known: Tensor,
    *,
    labels: int,
    acquisition: Acquisition = Acquisition.BALD,
    at_once: int = 1,
    unlabelled: Unlabelled = Unlabelled.LEFT_OUT,
    num_samples: int = 32,
    seed: int = 0,
) -> Iterator[Turn]:
    """Ask for labels of a pool in turn, and predict the queries before the first and after each turn.

    Args:
        model, guide: programs that take an episode; the model has the observed site ``labels``.
        pool: tasks whose support is the pool, with all its labels, of which the programs see those alone that are known.
        known: at first, bool ``[tasks, pool]``, equally many of each task, such as :func:`first_known`.
        labels: how many to ask for, of each task.
        at_once: how many are asked for in one turn, by the same scores; the last turn may have fewer.
        unlabelled: what the guide and a scorer see of the rest of the pool.
        num_samples: posterior draws of each prediction.
        seed: of draws, which are each task's own, and of what is random in the choice.

    Raises:
        UserError: more labels than items are left, or an acquisition that is not for such labels or programs.
    """
    if acquisition is Acquisition.ATTENTION:
        raise UserError("attention is a program's own, which asks while it predicts: choose `acquisition=entropy`, or another")
    labels, at_once = as_whole(labels, "labels"), as_whole(at_once, "at_once", 1)
    left = int((~known).sum(-1).min())
    if labels > left:
        raise UserError(f"`labels={labels}` are more than the {left} items without a label: lower it, or enlarge the pool")
    how: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "batch": len(known)}
    asked = 0
    while True:
        seen = present(pool, unlabelled, known)  # of the other labels nothing is left
        yield Turn(asked, known, predictive(model, guide, seen, query_x=pool.query_x, **how))
        if asked == labels:
            return
        count = min(at_once, labels - asked)
        if acquisition is Acquisition.RANDOM:
            scores = torch.zeros(known.shape, device=known.device)
        else:
            scores = score(predictive(model, guide, seen, query_x=pool.support_x, **how).labels, acquisition)
        chosen = choose(scores, ~known, count, seed=mix_seed(seed, asked, CHOICES))
        known, asked = known.scatter(1, chosen, True), asked + count


def measures(predicted: Predictive, query_y: Tensor) -> dict[str, Tensor]:
    """How good predictions of queries are, of each task, ``[tasks]``: ``accuracy`` (a fraction) of classes, or ``mse`` of noisy
    targets, and ``nll`` (nats per query).

    Args:
        predicted: of the queries.
        query_y: ``[tasks, query]``.
    """
    nll = -predicted.log_predictive(query_y).double().mean(-1)
    if query_y.is_floating_point():
        return {"mse": (predicted.labels.mean.mean(0) - query_y).double().square().mean(-1), "nll": nll}
    return {"accuracy": (predicted.probabilities().argmax(-1) == query_y).double().mean(-1), "nll": nll}


def curves(
    model: nn.Module, guide: nn.Module, pool: Episode, known: Tensor, acquisitions: Sequence[Acquisition], **how: Any
) -> dict[Acquisition, dict[str, Tensor]]:
    """What :func:`measures` gives before and after each turn, ``[turns + 1, tasks]``, of several acquisitions, which begin with
    the same labels.

    Args:
        model, guide, pool, known: see :func:`ask`.
        acquisitions: what is asked for.
        how: other arguments of :func:`ask`.

    Raises:
        UserError: see :func:`ask`; or no labels of queries.
    """
    if pool.query_y is None:
        raise UserError("how much labels are worth is told by those of queries: give `query_y`")
    found: dict[Acquisition, dict[str, Tensor]] = {}
    for acquisition in acquisitions:
        turns = [measures(t.predicted, pool.query_y) for t in ask(model, guide, pool, known, acquisition=acquisition, **how)]
        found[acquisition] = {name: torch.stack([turn[name] for turn in turns]) for name in turns[0]}
    return found


def score(labels: Any, acquisition: Acquisition) -> Tensor:
    """How much an item's label is wanted: ``[tasks, items]``.

    Args:
        labels: p(y given x, w_s) of posterior draws, batch_shape ``[draws, tasks, items]``.
        acquisition: any that reads predictions.

    Raises:
        UserError: entropy of regression, or variance of classes.
    """
    return SCORES[acquisition](labels)


def class_probabilities(labels: Any) -> Tensor:
    """p(y given x, w_s) of each value: batch_shape ``[draws, tasks, items]`` to ``[values, draws, tasks, items]``."""
    return labels.log_prob(labels.enumerate_support(expand=False)).exp()


def predictive_entropy(labels: Any) -> Tensor:
    """H[E_q p(y given x, w)], nats: ``[tasks, items]``.

    Args:
        labels: p(y given x, w_s) of posterior draws, batch_shape ``[draws, tasks, items]``.

    Raises:
        UserError: regression.
    """
    if not labels.has_enumerate_support:
        raise UserError("entropy is of classes: for regression choose `acquisition=variance`, or bald")
    return torch.special.entr(class_probabilities(labels).mean(1)).sum(0)


def predictive_variance(labels: Any) -> Tensor:
    """E_q Var[y given x, w] + Var_q E[y given x, w]: ``[tasks, items]``.

    Args:
        labels: p(y given x, w_s) of posterior draws, batch_shape ``[draws, tasks, items]``.

    Raises:
        UserError: classes.
    """
    if labels.has_enumerate_support:
        raise UserError("variance is of regression: for classes choose `acquisition=entropy`, or bald")
    return labels.variance.mean(0) + labels.mean.var(0, correction=0)


def mutual_information(labels: Any) -> Tensor:
    """I(y; w given x) = H[E_q p(y given x, w)] − E_q H[p(y given x, w)], nats: ``[tasks, items]``; 0 of a point.

    Of regression the first entropy is that of a Gaussian with the predictive variance: exact where the predictive is Gaussian,
    as with a Gaussian posterior of a linear model, and otherwise too large, for of all distributions with a variance the
    Gaussian has the largest entropy.

    Source: Houlsby et al. 2011, "Bayesian active learning for classification and preference learning", equation 2.

    Args:
        labels: p(y given x, w_s) of posterior draws, batch_shape ``[draws, tasks, items]``.
    """
    if labels.batch_shape[0] == 1:
        return torch.zeros(labels.batch_shape[1:], device=site_device(labels))
    if labels.has_enumerate_support:
        each = torch.special.entr(class_probabilities(labels)).sum(0)
        return predictive_entropy(labels) - each.mean(0)
    return 0.5 * (2 * math.pi * math.e * predictive_variance(labels)).log() - labels.entropy().mean(0)


SCORES = {
    Acquisition.ENTROPY: predictive_entropy,
    Acquisition.BALD: mutual_information,
    Acquisition.VARIANCE: predictive_variance,
}
"""What is asked for first has the highest of these."""


def choose(scores: Tensor, askable: Tensor, count: int = 1, *, seed: int) -> Tensor:
    """The items of each task with the highest scores: ``[tasks, count]``, indices.

    Of equal scores any is as likely as another. Items of a class often stand together, so that the first of equals would tell
    what nobody has asked for. What is no number counts as 0.

    Args:
        scores: ``[tasks, items]``.
        askable: bool, of the same shape; ``count`` or more in each task.
        seed: of the choice among equals.
    """
    known = scores.nan_to_num()
    rounding = ROUNDINGS * torch.finfo(known.dtype).eps * known.abs().amax(-1, keepdim=True)
    steps = (known.double() / rounding.double().clamp_min(torch.finfo(torch.float64).tiny)).round()
    order = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)).argsort(-1).to(scores.device)
    sorted_ = steps.masked_fill(~askable, -torch.inf).gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    return order.gather(-1, sorted_[:, :count])
