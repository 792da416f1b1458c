"""Scores of few-shot predictions: accuracy with its confidence interval, NLL, calibration, rate and distortion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error


@dataclass(frozen=True)
class Scores:
    """Means over tasks; the fields of a ``metrics.json`` record.

    Attributes:
        episodes: number of tasks.
        accuracy: fraction of queries whose most probable class is right.
        ci95: half-width of the 95 % interval of the mean accuracy over tasks, 1.96 · std / √tasks.
        nll: −log predictive probability of the true class, nats per query.
        ece: expected calibration error (15 bins, L1), fraction.
        brier: squared error of the probability vector, summed over classes, per query (0 to 2).
        rate: KL(q ‖ p), nats per task; ``None`` for a point, or where nothing is latent.
        distortion: −E_q Σ log p, nats per task.
    """

    episodes: int
    accuracy: float
    ci95: float
    nll: float
    ece: float
    brier: float
    rate: float | None
    distortion: float


def score(probabilities: Tensor, labels: Tensor, *, rate: Tensor | None, distortion: Tensor) -> Scores:
    """Score predictive probabilities.

    Args:
        probabilities: ``[tasks, query, way]``.
        labels: ``[tasks, query]``.
        rate, distortion: ``[tasks]``, nats; ``rate`` may be ``None``.
    """
    accuracy = (probabilities.argmax(-1) == labels).to(torch.float64).mean(-1)
    return Scores(
        episodes=len(labels),
        ci95=confidence_interval(accuracy),
        rate=None if rate is None else float(rate.mean()),
        distortion=float(distortion.mean()),
        **predictive_scores(probabilities.flatten(0, -2), labels.flatten()),
    )


def predictive_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy``, ``nll``, ``ece`` and ``brier`` of class probabilities ``[n, classes]``, as in :class:`Scores`."""
    classes = probabilities.shape[-1]
    true = probabilities.gather(-1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny)
    one_hot = torch.nn.functional.one_hot(labels, classes)
    return {
        "accuracy": float((probabilities.argmax(-1) == labels).to(torch.float64).mean()),
        "nll": float(-true.log().mean()),
        "ece": float(multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=15, norm="l1")),
        "brier": float((probabilities - one_hot).square().sum(-1).mean()),
    }


def confidence_interval(values: Tensor) -> float:
    """Half-width of the normal 95 % interval of the mean of ``values`` ``[n]``; 0 for a single value."""
    return float(1.96 * values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
