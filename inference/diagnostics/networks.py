"""Simulation-based calibration of an algorithm for Bayesian networks: are the posteriors that it fits right on average?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.seeding import seeded
from inference.diagnostics.calibration import LOG_LIKELIHOOD, Calibration, calibrate
from models.bayesian.network import BayesianNetwork

DRAWS = 49  # posterior draws per simulation
AT_ONCE = 500_000  # outputs in memory, and as many times the hidden units


@torch.no_grad()
def simulate(model: BayesianNetwork, x: Tensor, simulations: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Weights from the prior and data sets from the model: ``[simulations, P]`` and ``[simulations, n]``.

    Args:
        model: of one posterior, all of whose weights are random; a fixed prior and known noise.
        x: the inputs of every data set, ``[n, *item]``.
        simulations: how many.
        seed: of the draws.
    """
    with seeded(seed, device=x.device):
        weights = model.prior(model.num_weights).sample((simulations,))
        return weights, model.likelihood(model.map_weights(x, weights)).sample()


@torch.no_grad()
def calibrate_networks(
    model: BayesianNetwork,
    fit: Callable[[Tensor], Tensor],
    x: Tensor,
    at: Tensor,
    *,
    simulations: int = 500,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration of whatever ``fit`` does: w ~ p(w), y ~ p(y given x, w), a posterior of each data set.

    Coordinates: the function at the inputs ``at`` (its mean, or of classes the log probability of the first), and the log
    likelihood of the data set, without which a posterior that has learned nothing would pass. Not the weights: hidden units may
    swap places, so that no single weight means the same in two draws.

    Args:
        model: see :func:`simulate`.
        fit: from data sets ``[simulations, n]``, all at once, to draws of their posteriors, ``[draws, simulations, P]``.
        x: the inputs of every data set, ``[n, *item]``.
        at: inputs at which the function is looked at, ``[m, *item]``.
        names: of the coordinates at ``at``.
        level: of the verdict.
        seed: of the simulations.
    """
    truth, y = simulate(model, x, simulations, seed=seed)
    with torch.enable_grad():
        drawn = fit(y)
    found = [coordinates(model, weights, x, y, at) for weights in (truth[None], drawn)]
    named = [*(names or (f"output {i + 1}" for i in range(len(at)))), LOG_LIKELIHOOD]
    return calibrate(found[0][0], found[1], named, level=level, seed=seed)


def coordinates(model: BayesianNetwork, weights: Tensor, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """What is ranked, under weights ``[draws, simulations, P]``: ``[draws, simulations, m + 1]``."""
    inputs, parts = torch.cat([at, x]), []
    for some in weights.split(max(1, AT_ONCE // (weights.shape[1] * len(inputs)))):
        outputs = model.map_weights(inputs, some.flatten(0, 1)).unflatten(0, some.shape[:2])
        fit = model.likelihood(outputs[..., len(at) :, :]).log_prob(model.likelihood.cast(y, outputs)).sum(-1, keepdim=True)
        parts.append(torch.cat([responses(model, outputs[..., : len(at), :]), fit], dim=-1))
    return torch.cat(parts)


def responses(model: BayesianNetwork, outputs: Tensor) -> Tensor:
    """One identifiable number per item: ``[..., m, outputs]`` to ``[..., m]``."""
    labels = model.likelihood(outputs)
    if hasattr(labels, "logits") and outputs.shape[-1] > 1:
        return labels.logits[..., 0]  # normalised: those of a network may all be shifted alike
    return labels.mean
