"""How far approximations are from the posterior itself, as draws of NUTS stand for it: predictive KL, width, r-hat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from inference.bnn.posterior import NetworkPosterior
from inference.bnn.posteriors.chains import ChainPosterior
from inference.diagnostics.predictive_kl import predictive_kl

DATA_WIDTHS = 2  # how far outside the data is looked, in widths of the data
POINTS, DRAWS = 40, 2000


class Agreement(NamedTuple):
    """An approximation beside NUTS on one input; averages over inputs evenly spaced in an interval.

    Attributes:
        kl_inside: predictive KL(NUTS ‖ approximation) between the smallest and the largest training input, nats per point.
        kl_outside: beyond them, up to two widths of the data on either side.
        width: standard deviation of the predictive over that of NUTS, two widths of the data outside; the worse side.
        r_hat: of NUTS itself, the largest of its outputs' at all these inputs.
    """

    kl_inside: float
    kl_outside: float
    width: float
    r_hat: float | None = None


def intervals(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``[n, 1]`` evenly spaced inside the training inputs, and outside: the left and the right of them, outermost
    first and last."""
    low, high = x.min(), x.max()
    far, steps = DATA_WIDTHS * (high - low), torch.linspace(0, 1, POINTS // 2 + 1, dtype=x.dtype, device=x.device)[1:]
    outside = torch.cat([(low - far * steps).flip(0), high + far * steps])
    return torch.linspace(float(low), float(high), POINTS, dtype=x.dtype, device=x.device)[:, None], outside[:, None]


def agree(chains: ChainPosterior, other: NetworkPosterior, x: Tensor, *, seed: int = 0) -> Agreement:
    """An approximation beside the chains.

    Args:
        x: training inputs ``[n, 1]``.
        seed: of its draws.
    """
    kl, spread = [], []
    for grid in intervals(x):
        p = chains.observation(chains.outputs(grid, num_samples=DRAWS))
        q = other.observation(other.outputs(grid, num_samples=DRAWS, seed=seed))
        kl.append(float(predictive_kl(p, q).mean()))
        spread.append(predictive_variance(q) / predictive_variance(p))
    ends = spread[1][[0, -1]].sqrt()
    return Agreement(kl[0], kl[1], float(ends[ends.log().abs().argmax()]))


def predictive_variance(observation: torch.distributions.Distribution) -> Tensor:
    """Of the mixture over draws: ``[n]``."""
    return observation.mean.var(0, correction=0) + observation.variance.mean(0)


def own_error(chains: ChainPosterior, x: Tensor) -> Agreement:
    """What NUTS is off by: half of its chains beside the others, and r-hat. All of them together are nearer."""
    half = chains.size // 2
    first, others = chains.part(0, half), chains.part(half, chains.size)
    r_hat = max(float(chains.r_hat(grid).max()) for grid in intervals(x))
    return agree(others, first, x)._replace(r_hat=r_hat)


def chains_of(named: Mapping[str, NetworkPosterior]) -> ChainPosterior | None:
    """NUTS, where it is among these posteriors."""
    return next((posterior for posterior in named.values() if isinstance(posterior, ChainPosterior)), None)


def compare(named: Mapping[str, NetworkPosterior], x: Tensor) -> dict[str, Agreement]:
    """Every posterior of a run beside its NUTS, and NUTS beside itself; nothing where there is no NUTS.

    Args:
        named: algorithm -> posterior.
        x: training inputs ``[n, 1]``.
    """
    chains = chains_of(named)
    if chains is None:
        return {}
    return {name: own_error(chains, x) if other is chains else agree(chains, other, x) for name, other in named.items()}
