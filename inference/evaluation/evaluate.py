"""Evaluation of a model and guide on test tasks, before and after every synthetic gradient step."""

from __future__ import annotations

import torch

from data.episodes import EpisodeSampler
from data.seeding import mix_seed
from guides.tasks.unrolled import SyntheticGradientGuide
from inference.evaluation.metrics import Scores, score
from inference.evaluation.posterior import trajectory
from models.tasks.model import EmpiricalBayesModel

TASKS_AT_ONCE = 50


@torch.no_grad()
def evaluate(
    model: EmpiricalBayesModel,
    guide: SyntheticGradientGuide,
    sampler: EpisodeSampler,
    *,
    tasks: int,
    seed: int,
    steps: int | None = None,
    num_samples: int = 32,
) -> list[Scores]:
    """Scores after 0, 1, … K steps on the same ``tasks`` tasks (features, not images).

    The model's training mode and parameters are left as they were; nothing depends on how tasks are batched.

    Args:
        sampler: draws the tasks; its items are features ``[n, D]``.
        steps: K; default: the guide's own.
        num_samples: posterior draws of the predictive distribution.

    Returns:
        ``K + 1`` :class:`Scores`.
    """
    device, dtype = guide.log_inner_lr.device, guide.log_inner_lr.dtype
    collected: list[list[tuple[torch.Tensor, ...]]] = []
    labels = []
    for start in range(0, tasks, TASKS_AT_ONCE):
        count = min(TASKS_AT_ONCE, tasks - start)
        episode = sampler.sample(TASKS_AT_ONCE, seed=mix_seed(seed, start)).first(count).to(device, dtype=dtype)
        assert episode.query_y is not None
        labels.append(episode.query_y.cpu())
        collected.append([])
        for posterior in trajectory(model, guide, episode, steps=steps):
            outputs = posterior.outputs(num_samples=num_samples)
            distortion = -model.likelihood(outputs).log_prob(episode.query_y).sum(-1).mean(0)
            parts = (outputs.softmax(-1).mean(0), posterior.rate(), distortion)
            collected[-1].append(tuple(part.cpu() for part in parts))
    scores = []
    for batches in zip(*collected, strict=True):
        probabilities, rate, distortion = (torch.cat(parts) for parts in zip(*batches, strict=True))
        scores.append(score(probabilities, torch.cat(labels), rate=rate, distortion=distortion))
    return scores
