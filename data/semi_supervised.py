"""Semi-supervised tasks: of a part of the support the labels are not known."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from data.arguments import as_number
from data.episodes import Episode, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed

UNLABELLED = -1
"""In place of a label that is not known; what is below is :func:`sealed`."""
HIDDEN = 1  # a stream of random numbers


class Unlabelled(StrEnum):
    """What becomes of support items without a label."""

    LEFT_OUT = "left-out"
    """Nobody sees them."""
    SUPPORT = "support"
    """They stay in the support, with the label −1, for methods that make something of them there."""
    QUERIES = "queries"
    """They stand behind the queries, for methods that make something of queries."""


def sealed(labels: Tensor) -> Tensor:
    """Labels that may be asked for, −2 − y of label y: below 0, as whoever does not ask takes those that are not known. Sealed
    once more they are what they were."""
    return UNLABELLED - 1 - labels


def partly_unlabelled(episode: Episode, share: float, *, seed: int, keep_one: bool = False, askable: bool = False) -> Episode:
    """The same tasks, where a share of each class's support items have the label −1, a random choice of them.

    Of a class with n items round(share · n) lose their label, halves to the even number, so that classes with equally many
    items keep equally many labels. Source: Garcia and Bruna 2018, "Few-shot learning with
    graph neural networks".

    Args:
        episode: tasks with classes.
        share: from 0 to below 1.
        keep_one: whether each class keeps one label at least, instead of an error.
        askable: whether these labels are :func:`sealed` instead, for a method that asks for some of them.

    Raises:
        UserError: a class would have no label left, a share that is none, or regression.
    """
    if episode.support_y.is_floating_point():
        raise UserError("targets of regression tasks are not classes: unlabelled items are of tasks with classes alone")
    share = as_number(share, "share", zero=True)
    rank, count = ranks(episode.support_y, seed)
    hidden = (share * count.double()).round()
    if keep_one:
        hidden = torch.minimum(hidden, count - 1)
    if bool((hidden >= count).any()):
        least = int(count[hidden >= count].min())
        raise UserError(f"`share={share}` leaves a class with {least} support items no label: lower it, or raise `shot`")
    known = (rank >= hidden).to(episode.support_y.device)
    others = sealed(episode.support_y) if askable else UNLABELLED
    return episode._replace(support_y=episode.support_y.where(known, others))


def ranks(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Of each support item its place, 0, 1, … in random order, among those with its label, and how many these are: both of the
    shape of ``labels``, ``[tasks, support]``."""
    labels = labels.cpu()
    keys = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    same = labels[..., None] == labels[..., None, :]  # [tasks, support, support]
    return (same & (keys[..., None, :] < keys[..., None])).sum(-1), same.sum(-1)


def keep(labels: Tensor, known: Tensor) -> Tensor:
    """Labels where they are ``known``, −1 elsewhere; both ``[tasks, support]``."""
    return labels.masked_fill(~known.to(labels.device), UNLABELLED)


def labelled_part(episode: Episode, known: Tensor | None = None) -> Episode:
    """The same tasks with those support items alone whose labels are known, in their order.

    Args:
        known: which, ``[tasks, support]``; those whose label is not below 0 when not given.

    Raises:
        UserError: not equally many of each task.
    """
    known = episode.support_y > UNLABELLED if known is None else known.to(episode.support_y.device)
    counts = known.sum(-1)
    if bool((counts != counts[0]).any()):
        raise UserError("tasks of one batch have equally many labels, and these have not: give tasks of each number apart")
    return chosen_part(episode, known, int(counts[0]))


def chosen_part(episode: Episode, chosen: Tensor, count: int) -> Episode:
    """The same tasks with the ``chosen`` support items alone, ``[tasks, support]``, of which each task has ``count``."""
    order = (~chosen).long().argsort(dim=-1, stable=True)[:, :count]
    tasks = torch.arange(len(order), device=order.device)[:, None]
    return episode._replace(support_x=episode.support_x[tasks, order], support_y=episode.support_y[tasks, order])


def present(episode: Episode, how: Unlabelled, known: Tensor | None = None) -> Episode:
    """The same tasks as a method sees them that makes this of unlabelled support items.

    Args:
        how: what becomes of them.
        known: as for :func:`labelled_part`; regression, where −1 may be a target, needs it.

    Raises:
        UserError: not equally many labels of each task.
    """
    if how is Unlabelled.SUPPORT:
        return episode if known is None else episode._replace(support_y=keep(episode.support_y, known))
    known = episode.support_y > UNLABELLED if known is None else known.to(episode.support_y.device)
    seen = labelled_part(episode, known)
    if how is Unlabelled.LEFT_OUT:
        return seen
    others = chosen_part(episode, ~known, episode.support_y.shape[1] - seen.support_y.shape[1])
    query_y = episode.query_y
    if query_y is not None:
        query_y = torch.cat([query_y, torch.full_like(others.support_y, UNLABELLED)], dim=1)
    return seen._replace(query_x=torch.cat([episode.query_x, others.support_x], dim=1), query_y=query_y)


class SemiSampler:
    """Draws tasks of another sampler of which a share of the support's labels is hidden, see :func:`partly_unlabelled`.

    Args:
        sampler: of tasks with classes.
        share: hidden of each class.
        every: hides them in one batch of so many; with more than one, for training, each class keeps one label at least.
        askable: see :func:`partly_unlabelled`.
    """

    def __init__(self, sampler: Any, share: float, *, every: int = 1, askable: bool = False) -> None:
        self.sampler, self.share, self.every, self.askable = sampler, share, every, askable

    @property
    def spec(self) -> TaskSpec:
        """The tasks' shape."""
        return self.sampler.spec

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`~data.episodes.Episode`; equal seeds give equal tasks."""
        episode, own = self.sampler.sample(tasks, seed=seed), mix_seed(seed, HIDDEN)
        if own % self.every:
            return episode
        return partly_unlabelled(episode, self.share, seed=own, keep_one=self.every > 1, askable=self.askable)
