"""What the posterior of given tasks writes as ArviZ ``InferenceData``; see :mod:`inference.evaluation.arviz` for the groups.

Dimensions: ``task``, ``class``, ``feature``, ``support``, ``query``. Classes are numbered 0, 1, … in each task, unless all
tasks share them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import validation_enabled
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import Categorical

from data.episodes import Episode
from data.seeding import seeded
from inference.elbo import innermost
from inference.evaluation.arviz import (
    CHAINS,
    INDEPENDENT,
    LOO,
    NOTHING_LATENT,
    PARTICLES,
    POINT,
    Group,
    thinned,
    to_inference_data,
    whole_chains,
)
from inference.evaluation.predictive import is_determined, is_of_queries, labels_of, trace_guide, trace_model

EVENT_DIMS = {
    "weights": ("class", "feature"),
    "base_weights": ("base_class", "feature"),
    "prior_loc": ("feature",),
    "prior_log_scale": ("feature",),
}
"""Names of the dimensions of a draw within a task, where they have one."""
ON_SUPPORT, ON_QUERIES = ["task", "support"], ["task", "query"]


@torch.no_grad()
def tasks_to_arviz(
    model: nn.Module,
    guide: nn.Module,
    episode: Episode,
    query_y: Tensor | None = None,
    *,
    num_samples: int,
    class_names: Sequence[Any] = (),
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
):
    """``InferenceData`` of a batch of tasks; see :meth:`inference.evaluation.posterior.TaskPosterior.to_arviz`."""
    particles = getattr(guide, "particles", None)
    draws = whole_chains(num_samples) if particles is None else particles
    with seeded(seed, device=episode.query_x.device):
        drawn = trace_guide(guide, episode, draws)
    support = episode._replace(query_x=episode.support_x)
    supported = bool(support.support_y.numel())
    with seeded(seed, 1, device=episode.query_x.device):
        with validation_enabled(False):  # steps may run away from draws of the prior
            before = trace_model(model, None, support if supported else episode, draws)
        held_out = prediction_groups(labels_of(trace_model(model, drawn, episode, draws)), episode, query_y, class_names)
        observed = {}
        if supported:
            of_support = trace_guide(guide, support, draws) if is_of_queries(drawn) else drawn
            on_support = labels_of(trace_model(model, of_support, support, draws))
            observed = observed_groups(on_support, labels_of(before), episode)
    classes = is_classification(labels_of(before))
    sites, note = latent_sites(drawn, classes, class_names)
    prior, _ = latent_sites(before, classes, class_names, only=sites.values)
    notes = describe(guide, drawn) | {"thinned": note}
    groups = {"posterior": sites, "prior": prior, **observed, **held_out}
    if not sites.values:
        del groups["prior"]
        groups.pop("prior_predictive", None)
    chains = CHAINS if particles is None else 1
    return to_inference_data(groups, chains=chains, attributes=notes | dict(attributes or {}))


def is_classification(fn: Any) -> bool:
    """Whether a distribution is over classes."""
    return isinstance(innermost(fn), Categorical)


def target_name(fn: Any) -> str:
    """The observed variable: ``labels`` where it is a class, else ``y``."""
    return "labels" if is_classification(fn) else "y"


def latent_sites(
    trace: Trace, classes: bool, class_names: Sequence[Any], only: Collection[str] | None = None
) -> tuple[Group, str]:
    """Draws of the latent sites of a trace (``only`` some of them), thinned, and the attribute ``thinned``;
    with ``classes`` rows are named by class."""
    values, dims = {}, {}
    for name in trace.stochastic_nodes:
        if only is None or name in only:
            values[name], dims[name] = site_draws(trace.nodes[name], name, classes)
    group, note = thinned(values, dims, whole=("task", "query"))
    coords = {dim: index for dim, index in group.coords.items() if dim not in ("task", "query")}
    if class_names and "class" in coords:
        coords["class"] = [class_names[index] for index in coords["class"]]
    return Group(group.values, group.dims, coords), note


def site_draws(site: Mapping[str, Any], name: str, classes: bool) -> tuple[Tensor, list[str]]:
    """Draws of a site ``[draws, *plates, *event]``, and the names of the dimensions behind the draws; with
    ``classes`` rows are those of classes."""
    value, event = site["value"], site["fn"].event_dim
    inside = {frame.name for frame in site["cond_indep_stack"]}
    outer = [dim for plate, dim in (("tasks", "task"), ("queries", "query"), ("support", "support")) if plate in inside]
    for plates, position in (({"tasks"}, -2), ({"queries", "support"}, -1)):  # the model's plates, right of the draws
        value = value if plates & inside else value.squeeze(position - event)
    inner = list(EVENT_DIMS.get(name, [f"{name}_dim_{i}" for i in range(event)]))
    if inner[:1] == ["class"] and not classes:  # regression has one row of weights
        value, inner = value.squeeze(-event), inner[1:]
    return value, [*outer, *inner]


def observed_groups(on_support: Any, before: Any, episode: Episode) -> dict[str, Group]:
    """Groups of the support's targets, which the posterior was conditioned on: ``on_support`` under the
    posterior, ``before`` under the prior, where that gives probabilities to all of them."""
    name = target_name(on_support)
    dims = {name: ON_SUPPORT}
    ran_away = is_classification(before) and not bool(innermost(before).probs.isfinite().all())
    prior = {} if ran_away else {"prior_predictive": Group({name: before.sample()}, dims)}
    return {
        **prior,
        "posterior_predictive": Group({name: on_support.sample()}, dims),
        "observed_data": Group({name: episode.support_labels}, dims),
        "log_likelihood": Group({name: on_support.log_prob(episode.support_labels)}, dims),
        "constant_data": Group({"features": episode.support_x}, {"features": [*ON_SUPPORT, "feature"]}),
    }


def prediction_groups(
    on_queries: Any, episode: Episode, query_y: Tensor | None, class_names: Sequence[Any]
) -> dict[str, Group]:
    """Groups of the queries, of which ``on_queries`` holds the draws, with ``query_y`` where their targets are known."""
    name, classes = target_name(on_queries), is_classification(on_queries)
    expected = {"probabilities": on_queries.probs} if classes else {"mean": on_queries.mean}
    predictions, constant = {name: on_queries.sample(), **expected}, {"features": episode.query_x}
    if query_y is not None:
        known = query_y.to(episode.query_x.device)
        density = predictions["log_density"] = on_queries.log_prob(known)
        constant |= {name: known, "log_predictive_density": density.logsumexp(0) - math.log(len(density))}
    dims = dict.fromkeys([*predictions, *constant], ON_QUERIES)
    dims |= {"probabilities": [*ON_QUERIES, "class"], "features": [*ON_QUERIES, "feature"]}
    coords = {"class": list(class_names)} if classes and class_names else {}
    return {
        "predictions": Group(predictions, {name: dims[name] for name in predictions}, coords),
        "predictions_constant_data": Group(constant, {name: dims[name] for name in constant}),
    }


def describe(guide: nn.Module, drawn: Trace) -> dict[str, str]:
    """What the draws are of, as attributes.

    A guide that is an exact posterior says of which power of the likelihood, by ``likelihood_power``; the others were trained
    to give good predictions, from what they read.
    """
    read = "the support's labels; the guide may read the queries too, without labels"
    if getattr(guide, "saw_labels", False):
        read = "the labels of support and queries: predictions are not of held-out labels"
    elif getattr(guide, "likelihood_power", None) is not None:
        read = "the support's labels"
    if not drawn.stochastic_nodes:
        return {"draws": NOTHING_LATENT, "conditioned_on": read, "loo": LOO["point"]}
    if getattr(guide, "particles", 1) > 1:
        return {"draws": PARTICLES, "conditioned_on": read, "loo": LOO["amortized"]}
    if is_determined(drawn):
        return {"draws": POINT, "conditioned_on": read, "loo": LOO["point"]}
    return {"draws": INDEPENDENT, "conditioned_on": read, "loo": LOO[kind_of(guide)]}


def kind_of(guide: nn.Module) -> str:
    """A key of :data:`~inference.evaluation.arviz.LOO`, for a distribution that is no point."""
    power = getattr(guide, "likelihood_power", None)
    if power is None:
        return "amortized"
    return "exact" if power == 1 else "tempered"
