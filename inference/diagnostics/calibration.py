"""Simulation-based calibration: does a posterior hold the truth as often as it says?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LOG_LIKELIHOOD = "log likelihood"
"""The coordinate that is the data's log likelihood."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of simulated truths among posterior draws, and what they say.

    In simulations w ~ p(w), y ~ p(y given w) the truth has a uniform rank among independent draws of p(w given y), coordinate
    by coordinate. A coordinate passes whose ranks' empirical distribution stays in a *simultaneous* band around the uniform
    one; the band's level is corrected for the number of coordinates (Bonferroni), so that a right posterior passes as a whole
    with probability ``level`` at least.

    Attributes:
        names: of the coordinates.
        ranks: ``[simulations, coordinates]``, 0 … draws.
        draws: L, posterior draws per simulation.
        level: of the verdict.

    Source: Talts et al. 2018; Säilynoja et al. 2022 (bands, by ArviZ); Modrák et al. 2023 (the log likelihood among the
    coordinates: weights alone pass where the posterior is the prior).
    """

    names: tuple[str, ...]
    ranks: Tensor
    draws: int
    level: float = 0.95

    @property
    def points(self) -> np.ndarray:
        """The uniform distribution's values at each rank, ``[draws + 1]``."""
        return np.arange(1, self.draws + 2) / (self.draws + 1)

    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper band of the empirical distribution at :attr:`points`."""
        return simultaneous_band(len(self.ranks), self.draws, 1 - (1 - self.level) / len(self.names))

    def distribution(self) -> np.ndarray:
        """Empirical distribution of each coordinate's ranks at :attr:`points`, ``[coordinates, draws + 1]``."""
        counts = torch.stack([torch.bincount(column, minlength=self.draws + 1) for column in self.ranks.mT])
        return (counts.cumsum(-1).double() / len(self.ranks)).numpy()  # in single precision the band's edges lie outside it

    def leaves(self) -> np.ndarray:
        """Where each coordinate's distribution is outside the band, ``[coordinates, draws + 1]``."""
        lower, upper = self.band()
        found, rounding = self.distribution(), 1e-9
        return np.asarray((found < lower - rounding) | (found > upper + rounding))

    @property
    def inside(self) -> np.ndarray:
        """Which coordinates stay in the band, ``[coordinates]``."""
        return np.asarray(~self.leaves().any(-1))

    @property
    def passed(self) -> bool:
        """The verdict: every coordinate stays in its band."""
        return bool(self.inside.all())

    @property
    def spread(self) -> Tensor:
        """Variance of the ranks over that of uniform ones, ``[coordinates]``: above 1 the posterior is too narrow."""
        uniform = ((self.draws + 1) ** 2 - 1) / 12
        return (self.ranks.double() - self.draws / 2).square().mean(0) / uniform

    @property
    def mean_spread(self) -> float:
        """Mean of :attr:`spread` over weights and outputs."""
        return float(self.spread[torch.as_tensor(~self.is_likelihood)].mean())

    @property
    def is_likelihood(self) -> np.ndarray:
        """Which coordinate is the log likelihood, whose ranks say nothing of width, ``[coordinates]``."""
        return np.array([name == LOG_LIKELIHOOD for name in self.names])

    @property
    def verdict(self) -> str:
        """One line."""
        size = f"{len(self.ranks)} simulations, {len(self.names)} coordinates, level {self.level:.0%}"
        if self.passed:
            return f"passes ({size})"
        outside, likelihood = ~self.inside, self.is_likelihood
        found = f"{outside.sum()} of {len(self.names)} coordinates leave the band"
        if (outside & ~likelihood).any():
            spread = float(self.spread[torch.as_tensor(outside & ~likelihood)].mean())
            found += f", mostly {'too narrow' if spread > 1.1 else 'too wide' if spread < 0.9 else 'shifted'}"
        if (outside & likelihood).any():  # its ranks lie to one side, whichever way the posterior is wrong
            above = float(self.ranks[:, torch.as_tensor(likelihood)].double().mean()) > self.draws / 2
            found += f", draws explain the data {'worse' if above else 'better'} than the truth does"
        return f"fails: {found} ({size})"


def calibrate(
    truth: Tensor, draws: Tensor, names: Sequence[str] | None = None, *, level: float = 0.95, seed: int = 0
) -> Calibration:
    """Calibration of any simulator and posterior, from draws alone.

    Args:
        truth: ``[simulations, coordinates]``, what was simulated.
        draws: ``[L, simulations, coordinates]``, independent draws of each simulation's posterior.
        names: of the coordinates.
        level: of the verdict.
        seed: of the order among ties.
    """
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)).to(truth.device)
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    ranks = below + (noise * (ties + 1)).floor().long().clamp(max=ties)  # uniform among those equal to the truth
    named = tuple(names) if names is not None else tuple(f"{i + 1}" for i in range(truth.shape[-1]))
    return Calibration(named, ranks.cpu(), len(draws), level)


@lru_cache(maxsize=64)
def simultaneous_band(simulations: int, draws: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Band that the empirical distribution of ``simulations`` uniform ranks 0 … ``draws`` stays in, at all points at once, with
    probability ``level``. Source: Säilynoja et al. 2022, by ArviZ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at import
        from arviz.stats.ecdf_utils import ecdf_confidence_band

    points = np.arange(1, draws + 2) / (draws + 1)
    return ecdf_confidence_band(simulations, points, points, prob=level, method="optimized")


def central_coverage(levels: Tensor, probabilities: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> dict[float, float]:
    """Share of targets in central predictive intervals.

    Args:
        levels: predictive distribution functions at the targets, F(y), any shape (:func:`distribution_level`).
        probabilities: of the intervals.
    """
    distance = (2 * levels - 1).abs()
    return {p: float((distance <= p).double().mean()) for p in probabilities}


def distribution_level(labels: torch.distributions.Distribution, targets: Tensor) -> Tensor:
    """F(y) under the mean of p(y given x, w_s) over draws: ``[draws, ..., n]`` and ``[..., n]`` to ``[..., n]``."""
    return labels.cdf(targets).mean(0)
