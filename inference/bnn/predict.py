"""Predictions of a network's posterior for any number of items: a batch of them in memory at a time."""

from __future__ import annotations

import torch
from pyro.distributions import validation_enabled
from pyro.distributions.util import is_validation_enabled
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution

from inference.bnn.posterior import NetworkPosterior, items_at_once
from inference.evaluation.predictions import ClassPredictions
from inference.evaluation.value_predictions import ValuePredictions

NUMBERS_AT_ONCE = 4_000_000  # of draws × items × classes that are summed up together


@torch.no_grad()
def predict_items(
    posterior: NetworkPosterior,
    x: Tensor,
    *,
    num_samples: int,
    seed: int = 0,
    class_names: tuple[str, ...] = (),
) -> ClassPredictions | ValuePredictions:
    """Predictive distribution of each item, on the CPU.

    All items are predicted by the same draws of the weights, so that none depends on the items beside it.

    Args:
        posterior: over the weights.
        x: ``[n, *item]``, on any device.
        num_samples: draws of the weights; fewer where there are no more different ones.
        seed: of the draws.
        class_names: a name for each class.
    """
    weights, parts = posterior.sample(posterior.draws(num_samples), seed=seed), []
    watched = posterior.device.type == "cpu" and is_validation_enabled()  # a check would wait for another device
    with validation_enabled(watched):
        for batch in x.split(items_at_once(x)):
            outputs = posterior.outputs_of(batch, weights)
            for part in outputs.split(max(1, NUMBERS_AT_ONCE // outputs[:, 0].numel()), dim=1):
                parts.append(describe(posterior.observation(part), class_names, seed))
    return type(parts[0]).concatenate(parts)  # type: ignore[arg-type]


def describe(observation: Distribution, class_names: tuple[str, ...], seed: int) -> ClassPredictions | ValuePredictions:
    """What p(y given x, w_s) of posterior draws, batch_shape ``[draws, n]``, says of each item."""
    if isinstance(observation, Categorical):
        return ClassPredictions.from_draws(observation.probs, class_names)
    if isinstance(observation, Bernoulli):
        return ClassPredictions.from_draws(torch.stack([1 - observation.probs, observation.probs], dim=-1), class_names)
    return ValuePredictions.from_draws(observation, seed=seed)
