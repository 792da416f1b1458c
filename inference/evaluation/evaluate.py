"""Scores of a model and guide on test tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.episodes import Episode
from data.errors import UserError
from data.seeding import mix_seed
from inference.direct import Hidden
from inference.evaluation.at_once import predictives_at_once
from inference.evaluation.metrics import Scores, TaskSums
from inference.evaluation.predictive import CommonNoise, Predictive, place_of, predictives

TASKS_AT_ONCE = 50
NUMBERS_AT_ONCE = 2**22
"""Numbers of posterior draws and of what they say that are held at a time, for each of the few steps of a computation."""


WHOLE = (0, 1)
"""All of it: part 0 of 1."""


def batches(sampler: Any, tasks: int, seed: int) -> Iterator[Any]:
    """``tasks`` tasks of any sampler of episodes, in batches that depend on the seed alone, whatever their number; or the first
    tasks of a batch, each once."""
    for start in range(0, tasks, TASKS_AT_ONCE):
        count = min(TASKS_AT_ONCE, tasks - start)
        if isinstance(sampler, Episode):
            yield sampler.tasks(slice(start, start + count))
        else:
            yield sampler.sample(TASKS_AT_ONCE, seed=mix_seed(seed, start)).tasks(slice(count))


def predictions(
    model: nn.Module,
    guide: nn.Module,
    sampler: Any,
    *,
    tasks: int,
    seed: int,
    num_samples: int = 32,
    view: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Any, Predictive]]:
    """Batches of tasks where the programs are, and what is predicted of each.

    Every task has posterior draws of its own, so that intervals over tasks hold the draws' error, and under equal seeds the
    same ones for every guide, so that differences of guides are paired.

    Args:
        model, guide, sampler, tasks, seed, num_samples: see :func:`evaluate`.
        view: tasks as the programs see them, which predict the queries that these have; as they are when not given.
    """
    how: dict[str, Any] = {"tasks": tasks, "seed": seed, "num_samples": num_samples, "view": view}
    for episode, (predicted,) in predictions_of(model, [guide], sampler, **how):
        yield episode, predicted


def predictions_of(
    model: nn.Module,
    guides: Sequence[nn.Module],
    sampler: Any,
    *,
    tasks: int,
    seed: int,
    num_samples: int = 32,
    share: tuple[int, int] = WHOLE,
    view: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Any, list[Predictive]]]:
    """What :func:`predictions` gives for each of several readings of one guide, which share what they can; fewer tasks at a
    time where all draws of a whole batch would take more than :data:`NUMBERS_AT_ONCE`.

    Args:
        model, sampler, tasks, seed, num_samples: see :func:`evaluate`.
        view: see :func:`predictions`.
        guides: the readings, longer ones after shorter ones.
        share: (i, n) for part i of n of each batch, under the draws that it has in the whole one.
    """
    for part, noise, place in parts(place_of(*guides, model), sampler, tasks, seed, num_samples, share):
        how: dict[str, Any] = {"num_samples": num_samples, **place}
        if view is None:
            yield part, predictives(model, guides, part, noise, **how)
        else:
            yield part, predictives(model, guides, view(part), noise, query_x=part.query_x, **how)


def parts(
    where: tuple[torch.device, torch.dtype], sampler: Any, tasks: int, seed: int, num_samples: int, share: tuple[int, int]
) -> Iterator[tuple[Any, CommonNoise, dict[str, int]]]:
    """As many tasks as fit at a time, the noise of their batch, and their place in it: ``first`` and ``batch`` of
    :func:`~inference.evaluation.predictive.predictives`.

    Args:
        where: the programs are.
        sampler, tasks, seed, num_samples, share: see :func:`predictions_of`.
    """
    device, dtype = where
    for number, tasks_at_once in enumerate(batches(sampler, tasks, seed)):
        episode = tasks_at_once.to(device, dtype=dtype)
        noise, at_once = CommonNoise(mix_seed(seed, number)), tasks_that_fit(episode, num_samples)
        start, stop = (len(episode.query_x) * (share[0] + end) // share[1] for end in (0, 1))
        for first in range(start, stop, at_once):
            some = slice(first, min(first + at_once, stop))
            part = episode.tasks(some) if some != slice(0, len(episode.query_x)) else episode
            yield part, noise, {"first": first, "batch": TASKS_AT_ONCE}


def tasks_that_fit(episode: Any, draws: int) -> int:
    """How many tasks of an ``episode`` have :data:`NUMBERS_AT_ONCE` weights and outputs under so many ``draws``; at least 1."""
    queries, width = episode.query_x.shape[1], episode.query_x[0, 0].numel()
    return max(1, NUMBERS_AT_ONCE // (draws * (episode.way or 1) * (queries + width)))


def evaluate(model: nn.Module, guide: nn.Module, sampler: Any, *, tasks: int, seed: int, num_samples: int = 32) -> Scores:
    """Scores on ``tasks`` tasks (features, not images).

    Training mode and parameters are left as they were; more tasks begin with the same ones, under the same draws.

    Args:
        model, guide: programs that take an episode; the model has the observed site ``labels``.
        sampler: draws the tasks, such as :class:`~data.episodes.EpisodeSampler`, or holds them, an
            :class:`~data.episodes.Episode`; items are features.
        num_samples: posterior draws of the predictive distribution.
    """
    return evaluate_readings(model, {0: guide}, sampler, tasks=tasks, seed=seed, num_samples=num_samples)[0]


@torch.no_grad()
def evaluate_readings(
    model: nn.Module,
    guides: Mapping[int, nn.Module],
    sampler: Any,
    *,
    tasks: int,
    seed: int,
    num_samples: int = 32,
    share: tuple[int, int] = WHOLE,
    view: Callable[[Any], Any] | None = None,
) -> dict[int, Scores]:
    """What :func:`evaluate` gives for each of several :func:`readings` of one guide, on the same tasks, from one unrolling.
    Scores are added up batch by batch, so memory does not grow with the number of tasks.

    Args:
        model, sampler, tasks, seed, num_samples: see :func:`evaluate`.
        guides: the readings, longer ones after shorter ones.
        share: (i, n) for the tasks of the i-th of n processes, of which each has one at least where a batch has n.
        view: see :func:`predictions`.
    """
    programs, sums = list(guides.values()), {k: TaskSums() for k in guides}
    for episode, noise, place in parts(place_of(*programs, model), sampler, tasks, seed, num_samples, share):
        query_y = episode.query_y.cpu()
        said = answers(model, programs, episode, noise, view=view, num_samples=num_samples, **place)
        for added, (probabilities, distortion, rate) in zip(sums.values(), said, strict=True):
            added.add(probabilities, query_y, rate=rate, distortion=distortion)
    return {k: added.scores() for k, added in sums.items()}


def answers(
    model: nn.Module,
    guides: Sequence[nn.Module],
    episode: Any,
    noise: CommonNoise,
    *,
    view: Callable[[Any], Any] | None = None,
    **how: Any,
) -> list[Answers]:
    """What each reading says of the labelled queries of an ``episode``.

    Args:
        model, guides, noise, how: see :func:`~inference.evaluation.predictive.predictives`.
        view: see :func:`predictions`.
    """
    if view is not None:
        predicted = predictives(model, guides, view(episode), noise, query_x=episode.query_x, **how)
        return [Answers.of(one, episode.query_y) for one in predicted]
    try:
        at_once = predictives_at_once(model, guides, episode, noise, numbers=NUMBERS_AT_ONCE, **how)
        found = [Answers.of(some, episode.query_y) for some in at_once]
        if all(some.is_finite for some in found):  # traces tell what is no number, and where
            return [answer for some in found for answer in some.readings()]
    except Hidden:
        pass
    return [Answers.of(one, episode.query_y) for one in predictives(model, guides, episode, noise, **how)]


class Answers(NamedTuple):
    """What a reading is scored by, or several together, ``[readings, ...]``; on the CPU.

    Attributes:
        probabilities: of classes, averaged over draws, ``[tasks, query, way]``.
        distortion: −E_q Σ log p, nats, ``[tasks]``.
        rate: KL(q ‖ p), nats, ``[tasks]``; ``None`` as of :class:`~inference.evaluation.predictive.Predictive`.
    """

    probabilities: Tensor
    distortion: Tensor
    rate: Tensor | None

    @classmethod
    def of(cls, predicted: Predictive, query_y: Tensor) -> Answers:
        """On queries whose labels are ``query_y``, ``[tasks, query]``."""
        rate = None if predicted.rate is None else predicted.rate.cpu()
        return cls(predicted.probabilities().cpu(), predicted.distortion(query_y).cpu(), rate)

    def readings(self) -> Iterator[Answers]:
        """One by one."""
        return map(Answers, self.probabilities, self.distortion, repeat(None) if self.rate is None else self.rate)

    @property
    def is_finite(self) -> bool:
        """Whether every number is."""
        return all(bool(numbers.isfinite().all()) for numbers in self if numbers is not None)


def readings(guide: nn.Module, steps: int | None = None) -> dict[int, nn.Module]:
    """The guide after 0, 1, … K of its steps, where it takes steps; else itself, after 0.

    Args:
        steps: K; the guide's own when not given.

    Raises:
        UserError: steps are asked of a guide that takes none.
    """
    after = getattr(guide, "after", None)
    if after is None:
        if steps:
            raise UserError(f"this method takes no steps: leave out `steps={steps}`")
        return {0: guide}
    last = guide.steps if steps is None else steps
    return {k: after(k) for k in range(int(last) + 1)}  # type: ignore[arg-type]
