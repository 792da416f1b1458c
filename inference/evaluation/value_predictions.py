"""What a posterior says of items whose targets are numbers: mean, spread, an interval, and draws of the function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from data.seeding import seeded
from inference.elbo import innermost
from inference.evaluation.predictions import LEVEL
from models.distributions.mixture import widen

HALVINGS = 40  # of the interval that an edge is looked for in: beyond single precision
BEYOND = 6  # standard deviations beside all draws where the search begins
TARGETS = 2000  # draws of a target whose quantiles are the edges, where its distribution has no function for them


@dataclass(frozen=True)
class ValuePredictions:
    """Predicted targets of n items with one output, or d of them; on the CPU, in the targets' unit.

    Attributes:
        mean: E[y given x], ``[n]`` or ``[n, d]``.
        standard_deviation: of y, the same shape: the root of both variances below.
        function_deviation: what the weights leave open, which more data would take away: the standard deviation of E[y given
            x, w] under the posterior.
        noise_deviation: what is left when the weights are known: the root mean variance of y given x and w.
        lower, upper: equal-tailed 90 % interval of y, function and noise together: exact for the drawn weights where noise is
            Gaussian, else quantiles of 2000 drawn targets.
        draws: E[y given x, w_s] of each posterior draw, ``[draws, n]`` or ``[draws, n, d]``.
    """

    mean: Tensor
    standard_deviation: Tensor
    function_deviation: Tensor
    noise_deviation: Tensor
    lower: Tensor
    upper: Tensor
    draws: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    @classmethod
    def from_draws(cls, observation: Distribution, *, seed: int = 0) -> ValuePredictions:
        """From p(y given x, w_s) of posterior draws.

        Args:
            observation: batch_shape ``[draws, n]``, event_shape ``[]`` or ``[d]``.
            seed: of drawn targets, where there is need of them.
        """
        functions = observation.mean
        of_function, of_noise = functions.var(0, correction=0), observation.variance.mean(0)
        lower, upper = predictive_interval(observation, seed=seed)
        deviations = (of_function + of_noise, of_function, of_noise)
        numbers = (functions.mean(0), *(variance.sqrt() for variance in deviations), lower, upper, functions)
        return cls(*(number.cpu() for number in numbers))

    @classmethod
    def concatenate(cls, parts: Sequence[ValuePredictions]) -> ValuePredictions:
        """Predictions of one batch of items after another, as one."""
        joined = {}
        for field in fields(cls):
            joined[field.name] = torch.cat([getattr(part, field.name) for part in parts], dim=int(field.name == "draws"))
        return cls(**joined)


def predictive_interval(observation: Distribution, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Edges of the equal-tailed 90 % interval of the mixture over draws, of each number of y: ``[n]`` or ``[n, d]``.

    Args:
        observation: batch_shape ``[draws, n]``.
        seed: of drawn targets.
    """
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    inner = innermost(observation)
    if isinstance(inner, Normal):
        lower, upper = (normal_quantile(inner.mean, inner.stddev, tail) for tail in tails)
        return lower, upper
    draws = observation.batch_shape[0]
    with seeded(seed, device=observation.mean.device):
        targets = observation.sample(torch.Size((-(-TARGETS // draws),))).flatten(0, 1)
    lower, upper = (targets.quantile(tail, dim=0) for tail in tails)
    return lower, upper


def normal_quantile(loc: Tensor, scale: Tensor, probability: float) -> Tensor:
    """Quantile at ``probability`` of the equal mixture of N(loc_s, scale_s²): ``[draws, ...]`` to ``[...]``."""
    dtype, loc, scale = loc.dtype, widen(loc), widen(scale)  # a quantile of rounded probabilities would be a digit worse
    low, high = (loc - BEYOND * scale).amin(0), (loc + BEYOND * scale).amax(0)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = torch.special.ndtr((middle - loc) / scale).mean(0) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (0.5 * (low + high)).to(dtype)
