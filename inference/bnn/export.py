"""What a posterior over weights writes as ArviZ ``InferenceData``; see :mod:`inference.evaluation.arviz` for the groups.

Weights are variables by their parameter's name, with the dimensions ``<layer>.unit``, ``<layer>.input``, and of kernels
``<layer>.row`` and ``<layer>.column``. What is observed are training items: at most 1000, a seeded choice, whose numbers among
the training items are the coordinate ``item``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Categorical

from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from inference.evaluation.arviz import (
    CHAINS,
    INDEPENDENT,
    LOO,
    MARKOV,
    POINT,
    Group,
    choose_observed,
    item_dims,
    parameter_dims,
    thinned,
    to_inference_data,
    whole_chains,
)
from models.bayesian.network import BayesianNetwork

KEPT_ITEMS = 1000


class Drawable(Protocol):
    """What is asked of a posterior; see :class:`~inference.bnn.posterior.NetworkPosterior` for each."""

    @property
    def model(self) -> BayesianNetwork: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def is_markov(self) -> bool: ...

    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor: ...

    def draws(self, num_samples: int) -> int: ...

    def outputs(self, x: Tensor, *, num_samples: int = 40, seed: int = 0) -> Tensor: ...

    def outputs_of(self, x: Tensor, weights: Tensor) -> Tensor: ...

    def observation(self, outputs: Tensor) -> dist.TorchDistribution: ...

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor: ...

    def log_predictive(self, outputs: Tensor, y: Tensor) -> Tensor: ...


@torch.no_grad()
def weights_to_arviz(
    posterior: Drawable,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    train: LabelledItems | None = None,
    num_samples: int = 200,
    parameters: Sequence[str] | None = None,
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
):
    """``InferenceData`` of a posterior; see :meth:`inference.bnn.posterior.NetworkPosterior.to_arviz`; ``parameters`` names
    those to save, all when not given."""
    model = posterior.model
    chains = posterior.size if posterior.is_markov else CHAINS
    draws = whole_chains(num_samples, 1 if posterior.is_markov else posterior.size, chains)
    different = posterior.draws(draws)
    points = different < draws and not posterior.is_markov
    draws = min(draws, different) if posterior.is_markov else draws
    weights = posterior.sample(draws, seed=seed)
    sites, thinning = weight_group(model, weights, parameters)
    notes = describe(posterior, points) | thinning
    groups = {"posterior": sites}
    with seeded(mix_seed(seed), device=posterior.device):
        before = None if points else prior_draws(model, draws)
        if before is not None:
            groups["prior"], _ = weight_group(model, before, parameters)
            notes["prior"] = "made of posteriors, which have seen the data" if model.prior.sees_data else "as before the data"
        if train is not None:
            groups |= conditioned_groups(posterior, train, before, draws, seed)
            notes["conditioned_on"] = f"{len(train)} training items, of which observed_data holds {min(len(train), KEPT_ITEMS)}"
        if x is not None:
            names = train.class_names if train is not None else ()
            groups |= held_out_groups(posterior, x, y, draws, seed, names)
    return to_inference_data(groups, chains=chains, in_turn=posterior.is_markov, attributes=notes | dict(attributes or {}))


def prior_draws(model: BayesianNetwork, draws: int) -> Tensor:
    """``[draws, P]`` from the prior; in turn from those of the posteriors, where each has its own."""
    prior = model.prior(model.num_weights)
    return prior.sample((-(-draws // prior.batch_shape.numel()),)).reshape(-1, model.num_weights)[:draws]


def describe(posterior: Drawable, points: bool) -> dict[str, str]:
    """What the draws are of, as attributes; ``points`` where every draw is the same."""
    if posterior.is_markov:
        return {"draws": MARKOV, "loo": LOO["exact"]}
    if points:
        return {"draws": f"{posterior.size} of them in turn: {POINT}" if posterior.size > 1 else POINT, "loo": LOO["point"]}
    several = f", of {posterior.size} components in turn" if posterior.size > 1 else ""
    return {"draws": f"{INDEPENDENT}{several}", "loo": LOO["variational"]}


def weight_group(
    model: BayesianNetwork, weights: Tensor, parameters: Sequence[str] | None = None
) -> tuple[Group, dict[str, str]]:
    """Draws ``[draws, P]`` of the weights as a group, and the attributes that say what of them is there.

    Args:
        parameters: names of those to keep, whole; when not given, all are kept and large ones thinned.

    Raises:
        ValueError: an unknown name.
    """
    values: dict[str, Any] = dict(model.split(weights))
    if unknown := set(parameters or ()) - values.keys():
        raise ValueError(f"no parameter {', '.join(map(repr, sorted(unknown)))}: choose {', '.join(values)}")
    kept = {name: value for name, value in values.items() if parameters is None or name in parameters}
    dims = parameter_dims({name: value.shape[1:] for name, value in kept.items()})
    everything = {dim for names in dims.values() for dim in names} if parameters is not None else set()
    group, note = thinned(kept, dims, whole=everything)
    return group, {"thinned": note, "left_out": ", ".join(name for name in values if name not in kept) or "none"}


def conditioned_groups(
    posterior: Drawable, train: LabelledItems, before: Tensor | None, draws: int, seed: int
) -> dict[str, Group]:
    """Groups of training items: what the posterior was conditioned on.

    Args:
        before: weights drawn from the prior, ``[draws, P]``.
    """
    order = choose_observed(len(train), KEPT_ITEMS, seed)
    x, y = train.items[order], train.labels[order]
    outputs = all_draws(posterior.outputs(x, num_samples=draws, seed=seed), draws)
    observation = posterior.observation(outputs)
    name = target_name(observation)
    coords, targets, items = {"item": order.tolist()}, {name: target_dims(y)}, {name: ["item"]}
    groups = {
        "posterior_predictive": Group({name: observation.sample()}, targets, coords),
        "observed_data": Group({name: y}, targets, coords),
        "log_likelihood": Group({name: posterior.log_density(outputs, y)}, items, coords),
        "constant_data": Group({"x": x}, {"x": item_dims(x)}, coords),
    }
    if before is not None:
        drawn = posterior.observation(posterior.outputs_of(x, before)).sample()
        groups["prior_predictive"] = Group({name: drawn}, targets, coords)
    return groups


def held_out_groups(
    posterior: Drawable, x: Tensor, y: Tensor | None, draws: int, seed: int, class_names: Sequence[str]
) -> dict[str, Group]:
    """Groups of items that the posterior has not seen."""
    outputs = all_draws(posterior.outputs(x, num_samples=draws, seed=seed), draws)
    observation = posterior.observation(outputs)
    name, target = target_name(observation), target_dims(observation.mean[0])
    expected = {"probabilities": observation.probs} if name == "labels" else {"mean": observation.mean}
    predictions, constant = {name: observation.sample(), **expected}, {"x": x}
    if y is not None:
        predictions["log_density"] = posterior.log_density(outputs, y)
        constant |= {name: y, "log_predictive_density": posterior.log_predictive(outputs, y)}
    dims = {key: ["item"] for key in (*predictions, *constant)} | {"probabilities": ["item", "class"], "x": item_dims(x)}
    dims |= dict.fromkeys((name, "mean"), target)
    coords = {"class": list(class_names)} if name == "labels" and class_names else {}
    return {
        "predictions": Group(predictions, {key: dims[key] for key in predictions}, coords),
        "predictions_constant_data": Group(constant, {key: dims[key] for key in constant}),
    }


def all_draws(outputs: Tensor, draws: int) -> Tensor:
    """Outputs of ``draws`` draws: where the posterior is points, they are repeated in turn."""
    return outputs[torch.arange(draws, device=outputs.device) % len(outputs)]


def target_name(observation: dist.TorchDistribution) -> str:
    """The observed variable: ``labels`` where it is a class, else ``y``."""
    return "labels" if isinstance(observation, Categorical) else "y"


def target_dims(y: Tensor) -> list[str]:
    """Of targets ``[n]`` or ``[n, d]``."""
    return ["item", "output"][: y.dim()]
