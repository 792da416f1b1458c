"""Scores of a model and guide on test tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.episodes import Episode
from data.errors import UserError
from data.seeding import mix_seed
from inference.evaluation.metrics import Scores, score
from inference.evaluation.predictive import Predictive, place_of, predictive

TASKS_AT_ONCE = 50


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
    model: nn.Module, guide: nn.Module, sampler: Any, *, tasks: int, seed: int, num_samples: int = 32
) -> Iterator[tuple[Any, Predictive]]:
    """Batches of tasks where the programs are, and what is predicted of each.

    Every task has posterior draws of its own, so that intervals over tasks hold the draws' error, and under equal seeds the
    same ones for every guide, so that differences of guides are paired.

    Args:
        model, guide, sampler, tasks, seed, num_samples: see :func:`evaluate`.
    """
    device, dtype = place_of(guide, model)
    for number, tasks_at_once in enumerate(batches(sampler, tasks, seed)):
        episode = tasks_at_once.to(device, dtype=dtype)
        own = mix_seed(seed, number)
        yield episode, predictive(model, guide, episode, num_samples=num_samples, seed=own, batch=TASKS_AT_ONCE)


@torch.no_grad()
def evaluate(model: nn.Module, guide: nn.Module, sampler: Any, *, tasks: int, seed: int, num_samples: int = 32) -> Scores:
    """Scores on ``tasks`` tasks (features, not images).

    Training mode and parameters are left as they were; more tasks begin with the same ones, under the same draws.

    Args:
        model, guide: programs that take an episode; the model has the observed site ``labels``.
        sampler: draws the tasks, such as :class:`~data.episodes.EpisodeSampler`, or holds them, an
            :class:`~data.episodes.Episode`; items are features.
        num_samples: posterior draws of the predictive distribution.
    """
    probabilities: list[Tensor] = []
    labels: list[Tensor] = []
    distortions: list[Tensor] = []
    rates: list[Tensor | None] = []
    for episode, predicted in predictions(model, guide, sampler, tasks=tasks, seed=seed, num_samples=num_samples):
        labels.append(episode.query_y.cpu())
        probabilities.append(predicted.probabilities().cpu())
        distortions.append(predicted.distortion(episode.query_y).cpu())
        rates.append(None if predicted.rate is None else predicted.rate.cpu())
    known = [rate for rate in rates if rate is not None]
    rate = torch.cat(known) if known else None
    return score(torch.cat(probabilities), torch.cat(labels), rate=rate, distortion=torch.cat(distortions))


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
