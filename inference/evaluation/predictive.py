"""The predictive distribution of any model and guide: both are traced, and the site ``labels`` is read."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import kl_divergence

from data.episodes import Episode
from data.seeding import draw_part, mix_seed, part_of_batch, seeded, shared_draws
from inference.elbo import innermost
from models.networks.layers import evaluating
from models.plates import ordered_like

LABELS = "labels"
"""The observed site that every model has."""

DRAWS_DIM = -3  # left of the plates of tasks and queries
TASKS_DIM = 1  # of a latent site's draws, which come first


@dataclass(frozen=True)
class Predictive:
    """What a model and its guide say of the queries of some tasks.

    Attributes:
        labels: p(y given x, w_s) of each posterior draw s, batch_shape ``[draws, tasks, query]``; one draw where nothing is
            random.
        rate: KL(q ‖ p), nats: ``[tasks]``, averaged over what hyperparameters were drawn; ``None`` where the posterior is a
            point or nothing is latent.
    """

    labels: dist.TorchDistribution
    rate: Tensor | None

    @property
    def num_draws(self) -> int:
        """S."""
        return self.labels.batch_shape[0]

    def probabilities(self) -> Tensor:
        """Posterior predictive class probabilities, averaged over draws: ``[tasks, query, way]``."""
        return self.labels.probs.mean(0)

    def log_likelihood(self, query_y: Tensor) -> Tensor:
        """log p(y_i given x_i, w_s), nats: ``[tasks, query]`` to ``[draws, tasks, query]``."""
        return self.labels.log_prob(query_y)

    def log_predictive(self, query_y: Tensor) -> Tensor:
        """log E_q p(y_i given x_i, w), nats: ``[tasks, query]``."""
        return self.log_likelihood(query_y).logsumexp(0) - math.log(self.num_draws)

    def distortion(self, query_y: Tensor) -> Tensor:
        """−E_q Σ_i log p(y_i given x_i, w), nats: ``[tasks]``."""
        return -self.log_likelihood(query_y).sum(-1).mean(0)


class CommonNoise(Messenger):
    """Latent Gaussian sites take antithetic draws that depend on the seed and the site's name alone.

    So comparisons of guides share their noise. Whether all tasks take the same draws or each its own is what
    :func:`data.seeding.draw_part` says. Rows of a task's weights take their noise in the order of their means, so that
    renaming classes renames predictions and nothing else. Sites of other kinds draw as usual.

    Args:
        seed: of the noise.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["done"] or not is_gaussian(fn):
            return
        generator = torch.Generator().manual_seed(mix_seed(self.seed, *msg["name"].encode()))
        draws, shape = fn.batch_shape[0], (*fn.batch_shape[1:], *fn.event_shape)
        draw = partial(torch.randn, generator=generator)
        wanted = (math.ceil(draws / 2), *shape)
        half = (draw_part(draw, wanted, TASKS_DIM) if is_of_tasks(msg) else draw(wanted)).to(fn.mean)
        noise = torch.stack([half, -half], dim=1).flatten(0, 1)[:draws]
        if len(fn.event_shape) == 2:
            noise = ordered_like(fn.mean, noise.expand(fn.shape()))
        msg["value"], msg["done"] = fn.mean + noise * fn.stddev, True


class Unread(Messenger):
    """The observed site keeps its distribution, and nothing is drawn from it."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == LABELS:
            msg["value"], msg["done"] = torch.zeros((), device=site_device(msg["fn"])).expand(msg["fn"].shape()), True


def is_of_tasks(site: Any) -> bool:
    """Whether a site is in the plate ``tasks``; hyperparameters, which all tasks share, are not."""
    return any(frame.name == "tasks" for frame in site["cond_indep_stack"])


def is_gaussian(fn: Any) -> bool:
    """Whether a distribution is an independent Gaussian in all its numbers."""
    return isinstance(innermost(fn), torch.distributions.Normal)


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass."""
    return isinstance(innermost(fn), dist.Delta)


def site_device(fn: Any) -> torch.device:
    """Where a distribution's parameters are."""
    return next(value.device for value in vars(innermost(fn)).values() if isinstance(value, Tensor))


def place_of(*modules: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating-point type of the modules' parameters; the CPU and torch's default where there are none."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


@torch.no_grad()
def predictive(
    model: nn.Module,
    guide: nn.Module,
    episode: Episode,
    *,
    query_x: Tensor | None = None,
    num_samples: int = 32,
    seed: int = 0,
    batch: int | None = None,
) -> Predictive:
    """Predict the queries of ``episode``'s tasks.

    Equal seeds give equal predictions, and torch's random state is left as it was.

    Args:
        model, guide: programs that take an episode; the model has the observed site ``labels``. Their mode is left as it was.
        episode: what the guide sees; query labels are read by guides that say so alone.
        query_x: other queries to predict, ``[tasks, n, *item]``; those of the episode when not given.
        num_samples: S, posterior draws; one where nothing is random.
        seed: of the draws, see :class:`CommonNoise`.
        batch: all tasks take the same draws when not given, so that no prediction depends on the tasks beside it. A number
            gives each task draws of its own, those of its place among the first of so many: means over tasks need them, for
            the error of shared draws does not average out.
    """
    place = shared_draws() if batch is None else part_of_batch(slice(0, len(episode.query_x)), batch)
    with seeded(seed, device=episode.query_x.device), place, CommonNoise(seed):
        guide_trace = trace_guide(guide, episode, num_samples)
        if is_determined(guide_trace):
            num_samples, guide_trace = 1, trace_guide(guide, episode, 1)
    asked = episode if query_x is None else episode._replace(query_x=query_x)
    model_trace = trace_model(model, guide_trace, asked, num_samples)
    return Predictive(labels_of(model_trace), total_rate(model_trace, guide_trace))


def trace_guide(guide: nn.Module, episode: Episode, num_samples: int) -> Trace:
    """The guide's sites under a plate of ``num_samples`` draws, in evaluation mode."""
    given = episode if getattr(guide, "saw_labels", False) else episode.unlabelled()
    with evaluating(guide), poutine.trace() as tracer, draws_plate(num_samples):
        guide(*given)
    return prune_subsample_sites(tracer.trace)


def trace_model(model: nn.Module, guide_trace: Trace | None, episode: Episode, num_samples: int) -> Trace:
    """The model's sites under the guide's draws, or its own prior's, with the distribution of ``episode``'s query labels."""
    replayed = nullcontext() if guide_trace is None else poutine.replay(trace=guide_trace)
    with evaluating(model), poutine.trace() as tracer, Unread(), replayed, draws_plate(num_samples):
        model(*episode.unlabelled())
    return prune_subsample_sites(tracer.trace)


def labels_of(trace: Trace) -> Any:
    """The distribution of the observed site."""
    return trace.nodes[LABELS]["fn"]


def is_determined(trace: Trace) -> bool:
    """Whether all latent sites are points, or there are none."""
    return all(is_point(trace.nodes[name]["fn"]) for name in trace.stochastic_nodes)


def draws_plate(draws: int) -> pyro.plate:
    """The plate of posterior draws, left of all others.

    Raises:
        ValueError: no draws.
    """
    if draws < 1:
        raise ValueError(f"num_samples = {draws} must be 1 or more")
    return pyro.plate("draws", draws, dim=DRAWS_DIM)


def total_rate(model_trace: Trace, guide_trace: Trace) -> Tensor | None:
    """Σ KL(q ‖ p) over the tasks' own latent sites, nats: ``[tasks]``.

    A site outside the plate ``tasks`` (hyperparameters) belongs to no task and is not counted.
    """
    total = None
    for name in guide_trace.stochastic_nodes:
        site: Any = guide_trace.nodes[name]
        if name not in model_trace or not is_of_tasks(site):
            continue
        if is_point(site["fn"]):
            return None
        rate = divergence(site["fn"], model_trace.nodes[name]["fn"], site["value"])
        rate = rate.mean(0).sum(tuple(range(1, rate.dim() - 1)))  # over draws, and over plates inside a task
        total = rate if total is None else total + rate
    return total


def divergence(posterior: Any, prior: Any, drawn: Tensor) -> Tensor:
    """KL(posterior ‖ prior), or where no closed form is registered its estimate log q − log p at each ``drawn`` value; nats."""
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        return posterior.log_prob(drawn) - prior.log_prob(drawn)
