"""Scores of few-shot predictions: accuracy with its confidence interval, NLL, calibration, rate and distortion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


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


BINS = 15
"""Of the confidence, for the calibration error."""


@dataclass
class ItemSums:
    """What scores of class probabilities are the means of, added up batch by batch in float64: so memory does not grow with the
    number of items, and no mean depends on how many were added at a time but by rounding.

    Attributes:
        items: how many.
        right: of them, by their most probable class.
        nll: nats.
        brier: see :class:`Scores`.
        gaps: ``[BINS + 1]``, of each bin of the confidence how many of its items are right less their confidence; the last bin
            holds certainty alone.
    """

    items: int = 0
    right: int = 0
    nll: float = 0.0
    brier: float = 0.0
    gaps: Tensor = field(default_factory=lambda: torch.zeros(BINS + 1, dtype=torch.float64))

    def add(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """More items.

        Args:
            probabilities: ``[n, classes]``.
            labels: ``[n]``.

        Returns:
            which of them are right, ``[n]``.
        """
        confidence, predicted = probabilities.max(-1)
        true, right = probabilities.gather(-1, labels[:, None])[:, 0], predicted == labels
        one_hot = torch.nn.functional.one_hot(labels, probabilities.shape[-1])
        self.items += len(labels)
        self.right += int(right.sum())
        self.nll -= total(true.clamp_min(torch.finfo(true.dtype).tiny).log())
        self.brier += total((probabilities - one_hot).square())
        edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype, device=confidence.device)
        bins = torch.bucketize(confidence, edges, right=True) - 1
        self.gaps += torch.bincount(bins.cpu(), weights=(right.double() - confidence).cpu(), minlength=BINS + 1)
        return right

    def means(self) -> dict[str, float]:
        """``accuracy``, ``nll``, ``ece`` and ``brier`` of all items, as in :class:`Scores`; no numbers where there are none."""
        sums = {"accuracy": self.right, "nll": self.nll, "ece": float(self.gaps.abs().sum()), "brier": self.brier}
        return {name: value / self.items if self.items else math.nan for name, value in sums.items()}


@dataclass
class TaskSums:
    """The same for tasks: what their :class:`Scores` are made of, of any number of tasks.

    Attributes:
        queries: sums over queries.
        tasks: how many; all have equally many queries.
        right_squared: Σ over tasks of the squared number of right queries.
        distortion: Σ over tasks, nats.
        rate: likewise; ``None`` where there is none, or where some of the tasks have none.
    """

    queries: ItemSums = field(default_factory=ItemSums)
    tasks: int = 0
    right_squared: int = 0
    distortion: float = 0.0
    rate: float | None = None

    def add(self, probabilities: Tensor, labels: Tensor, *, rate: Tensor | None, distortion: Tensor) -> None:
        """More tasks.

        Args:
            probabilities: ``[tasks, query, way]``.
            labels: ``[tasks, query]``.
            rate, distortion: ``[tasks]``, nats; ``rate`` may be ``None``.
        """
        right = self.queries.add(probabilities.flatten(0, -2), labels.flatten()).view(labels.shape)
        if rate is None or (self.rate is None and self.tasks):
            self.rate = None  # the sum over some tasks is not that over all
        else:
            self.rate = (self.rate or 0.0) + total(rate)
        self.tasks += len(labels)
        self.right_squared += int(right.sum(-1).square().sum())
        self.distortion += total(distortion)

    def scores(self) -> Scores:
        """Of all tasks that were added; no numbers where there are none."""
        return Scores(
            episodes=self.tasks,
            ci95=self.interval(),
            rate=None if self.rate is None else self.rate / self.tasks,
            distortion=self.distortion / self.tasks if self.tasks else math.nan,
            **self.queries.means(),
        )

    def interval(self) -> float:
        """:func:`confidence_interval` of the tasks' accuracies, from whole numbers, so exactly; no number of no tasks."""
        if self.tasks < 2:
            return 0.0 if self.tasks else math.nan
        squares = self.tasks * self.right_squared - self.queries.right**2  # tasks² · variance of the number that is right
        each = self.queries.items / self.tasks
        return 1.96 * math.sqrt(squares / (self.tasks - 1)) / (each * self.tasks)


def total(values: Tensor) -> float:
    """Σ of ``values`` in float64."""
    return float(values.sum(dtype=torch.float64))


def score(probabilities: Tensor, labels: Tensor, *, rate: Tensor | None, distortion: Tensor) -> Scores:
    """Score predictive ``probabilities`` of tasks that are at hand, with their ``labels``, ``rate`` and ``distortion`` as in
    :meth:`TaskSums.add`."""
    sums = TaskSums()
    sums.add(probabilities, labels, rate=rate, distortion=distortion)
    return sums.scores()


def predictive_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy``, ``nll``, ``ece`` and ``brier`` of class probabilities ``[n, classes]``, as in :class:`Scores`."""
    sums = ItemSums()
    sums.add(probabilities, labels)
    return sums.means()


def confidence_interval(values: Tensor) -> float:
    """Half-width of the normal 95 % interval of the mean of ``values`` ``[n]``; 0 for a single value."""
    return float(1.96 * values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
