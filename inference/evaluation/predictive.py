"""The predictive distribution of any model and guide: both are traced, and the site ``labels`` is read."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
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
from models.distributions.by_class import ClassByClass
from models.distributions.support_gaussian import SupportGaussian
from models.networks.layers import evaluating
from models.plates import ordered_like
from models.sites import FROM_PRIOR

LABELS = "labels"
"""The observed site that every model has."""

DRAWS, DRAWS_DIM = "draws", -3  # their plate, left of those of tasks and queries
TASKS_DIM = 1  # of a latent site's draws, which come first


@dataclass(frozen=True)
class Predictive:
    """What a model and its guide say of the queries of some tasks.

    Attributes:
        labels: p(y given x, w_s) of each posterior draw s, batch_shape ``[draws, tasks, query]``; one draw where nothing is
            random.
        rate: KL(q ‖ p), nats: ``[tasks]``, averaged over what hyperparameters were drawn; ``None`` where the posterior is a
            point, nothing is latent, or all draws are the model's own prior's.
    """

    labels: dist.TorchDistribution
    rate: Tensor | None

    @property
    def num_draws(self) -> int:
        """S."""
        return self.labels.batch_shape[0]

    def probabilities(self) -> Tensor:
        """Posterior predictive class probabilities, averaged over draws: ``[tasks, query, way]``."""
        return class_probabilities(self.labels).mT.mean(0).mT  # along memory, where classes come before queries

    def log_likelihood(self, query_y: Tensor) -> Tensor:
        """log p(y_i given x_i, w_s), nats: ``[tasks, query]`` to ``[draws, tasks, query]``."""
        return self.labels.log_prob(query_y)

    def log_predictive(self, query_y: Tensor) -> Tensor:
        """log E_q p(y_i given x_i, w), nats: ``[tasks, query]``."""
        return self.log_likelihood(query_y).logsumexp(0) - math.log(self.num_draws)

    def distortion(self, query_y: Tensor) -> Tensor:
        """−E_q Σ_i log p(y_i given x_i, w), nats: ``[tasks]``."""
        return -self.log_likelihood(query_y).sum(-1).mean(0)


def class_probabilities(labels: Any) -> Tensor:
    """``labels.probs``, ``[..., queries, classes]``; of Pyro's categorical distribution made of logits by a softmax over the
    dimension before the last, which takes a tenth of the time on a CPU: over few neighbours torch goes from row to row."""
    of_logits = isinstance(labels, torch.distributions.Categorical) and "logits" in vars(labels)
    if not of_logits or isinstance(labels, ClassByClass):
        return labels.probs
    return labels.logits.mT.softmax(-2).mT


class CommonNoise(Messenger):
    """Latent Gaussian sites take antithetic draws that depend on the seed and the site's name alone.

    So comparisons of guides share their noise. Whether all tasks take the same draws or each its own is what
    :func:`data.seeding.draw_part` says. Rows of a task's weights take their noise in the order of their means, so that
    renaming classes renames predictions and nothing else, but for posteriors whose rows are correlated with one another, where
    it gives other draws of the same posterior. Sites of other kinds draw as usual.

    What was drawn once is kept, for other programs that run under the same one.

    Args:
        seed: of the noise.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.kept: dict[tuple, Tensor] = {}

    def draw(self, shape: Sequence[int], *, name: str, like: Tensor) -> Tensor:
        """Standard normal numbers ``[*shape]`` of the site ``name``, with the dtype and device of ``like``: the same ones
        everywhere."""
        key = name, tuple(shape), like.dtype, like.device
        if key not in self.kept:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, *name.encode()))
            self.kept[key] = torch.randn(tuple(shape), generator=generator).to(like)
        return self.kept[key]

    def of_site(self, shape: Sequence[int], *, name: str, like: Tensor, of_tasks: bool) -> Tensor:
        """:meth:`draw` for a site of the ``shape`` ``[pairs, tasks, ...]``, or of another that is not ``of_tasks``."""
        draw = partial(self.draw, name=name, like=like)
        return draw_part(draw, shape, TASKS_DIM) if of_tasks else draw(shape)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        correlated = isinstance(fn, SupportGaussian)
        if msg["is_observed"] or msg["done"] or not (correlated or is_gaussian(fn)):
            return
        mean, draws = innermost(fn).loc, fn.batch_shape[0]
        wanted = (math.ceil(draws / 2), *fn.batch_shape[1:], *fn.event_shape)
        noise = self.of_site(wanted, name=msg["name"], like=mean, of_tasks=is_of_tasks(msg))
        alike = not correlated and repeats(mean) and repeats(innermost(fn).scale)
        if not alike:
            noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)[:draws]
        if len(fn.event_shape) == 2:
            noise = ordered_like(mean[:1] if alike else mean, noise)
        if correlated:
            msg["value"] = fn.from_noise(noise)
        else:
            scale = innermost(fn).scale
            msg["value"] = antithetic(mean[:1], scale[:1], noise)[:draws] if alike else mean + noise * scale
        msg["done"] = True


class Unread(Messenger):
    """The observed site keeps its distribution, and nothing is drawn from it."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == LABELS:
            msg["value"], msg["done"] = torch.zeros((), device=site_device(msg["fn"])).expand(msg["fn"].shape()), True


def is_of_tasks(site: Any) -> bool:
    """Whether a site is in the plate ``tasks``; hyperparameters, which all tasks share, are not."""
    return any(frame.name == "tasks" for frame in site["cond_indep_stack"])


def is_of_queries(trace: Trace) -> bool:
    """Whether a guide's latent sites are of its queries one by one, as codes are; other queries have others."""
    sites: Any = [trace.nodes[name] for name in trace.stochastic_nodes]
    return any(frame.name == "queries" for site in sites for frame in site["cond_indep_stack"])


def is_gaussian(fn: Any) -> bool:
    """Whether a distribution is an independent Gaussian in all its numbers."""
    return isinstance(innermost(fn), torch.distributions.Normal)


def repeats(tensor: Tensor) -> bool:
    """Whether the first dimension of a ``tensor``, that of draws, says the same thing over and over."""
    return tensor.stride(0) == 0 or len(tensor) == 1


def antithetic(mean: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Gaussian draws in pairs on both sides of their mean: ``mean`` and ``scale`` ``[1, tasks, ...]`` and ``noise`` ``[pairs,
    tasks, ...]`` to ``[2 · pairs, tasks, ...]``, in memory task by task, as products of each task with all its draws read them.
    """
    mean, scale, noise = (part.movedim(0, 1) for part in (mean, scale, noise))
    both = torch.empty((*noise.shape[:2], 2, *noise.shape[2:]), dtype=mean.dtype, device=mean.device)
    for side, sign in enumerate((1, -1)):
        torch.addcmul(mean, noise, scale, value=sign, out=both[:, :, side])
    return both.flatten(1, 2).movedim(1, 0)


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass."""
    return isinstance(innermost(fn), dist.Delta)


def site_device(fn: Any) -> torch.device:
    """Where a distribution's parameters are."""
    return next(value.device for value in vars(innermost(fn)).values() if isinstance(value, Tensor))


def place_of(*modules: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating-point type of the modules' parameters; the CPU and torch's default where there are none."""
    for module in modules:
        for tensor in chain(module.parameters(), module.buffers()):
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
        num_samples: S, posterior draws; one where nothing is random, and of particles these.
        seed: of the draws, see :class:`CommonNoise`.
        batch: all tasks take the same draws when not given, so that no prediction depends on the tasks beside it. A number
            gives each task draws of its own, those of its place among the first of so many: means over tasks need them, for
            the error of shared draws does not average out.
    """
    return predictives(model, [guide], episode, CommonNoise(seed), query_x=query_x, num_samples=num_samples, batch=batch)[0]


@torch.no_grad()
def predictives(
    model: nn.Module,
    guides: Sequence[nn.Module],
    episode: Episode,
    noise: CommonNoise,
    *,
    query_x: Tensor | None = None,
    num_samples: int = 32,
    first: int = 0,
    batch: int | None = None,
) -> list[Predictive]:
    """What :func:`predictive` gives for each of several readings of one guide, which unroll it once and share their draws.

    Args:
        model, episode, query_x, num_samples, batch: see :func:`predictive`.
        guides: the readings, longer ones after shorter ones.
        noise: of the draws.
        first: place of the first task in a batch of ``batch``.
    """
    asked = episode if query_x is None else episode._replace(query_x=query_x)
    rows, draws, found = slice(first, first + len(episode.query_x)), num_samples, []
    for guide in reversed(sharing_steps(guides)):
        place = shared_draws() if batch is None else part_of_batch(rows, batch)
        with seeded(noise.seed, device=episode.query_x.device), place, noise:
            guide_trace = trace_guide(guide, episode, draws)
            if draws > 1 and is_determined(guide_trace):  # and so are the other readings
                draws, guide_trace = 1, trace_guide(guide, episode, 1)
            if query_x is not None and is_of_queries(guide_trace):
                guide_trace = trace_guide(guide, asked, draws)
        model_trace = trace_model(model, guide_trace, asked, draws)
        found.append(Predictive(labels_of(model_trace), total_rate(model_trace, guide_trace)))
    return found[::-1]


def sharing_steps(guides: Sequence[nn.Module]) -> list[nn.Module]:
    """The same readings of one guide, which unroll the same tasks once where the longest is called first: its steps begin with
    those of the shorter ones. A guide that cannot be unrolled is left as it is."""
    kept: list[Any] = []

    def shared(guide: Any) -> nn.Module:
        def unroll(*args: Any, hyperparameters: Sequence[Tensor] | None = None) -> list[Any]:
            given = (*args, *(hyperparameters or ()))
            if not (kept and len(kept[1]) > guide.steps and all(a is b for a, b in zip(given, kept[0], strict=True))):
                kept[:] = given, guide.unroll(*args, hyperparameters=hyperparameters)
            return kept[1][: guide.steps + 1]

        other = copy.copy(guide)
        other.unroll = unroll
        return other

    return [shared(guide) if hasattr(guide, "unroll") else guide for guide in guides]


def draws_of(guide: nn.Module, num_samples: int) -> int:
    """How many draws of a guide there are where ``num_samples`` are asked for. One whose posterior is so many equally probable
    points says so by ``particles``: its draws are these, each once."""
    return getattr(guide, "particles", num_samples)


def visible(guide: nn.Module, episode: Episode) -> Episode:
    """The ``episode`` as a ``guide`` sees it: with query labels where it says that it reads them."""
    return episode if getattr(guide, "saw_labels", False) else episode.unlabelled()


def trace_guide(guide: nn.Module, episode: Episode, num_samples: int) -> Trace:
    """The guide's sites under a plate of ``num_samples`` draws, or of its particles (:func:`draws_of`), in evaluation mode."""
    given = visible(guide, episode)
    with evaluating(guide), poutine.trace() as tracer, draws_plate(draws_of(guide, num_samples)):
        guide(*given)
    return prune_subsample_sites(tracer.trace)


def trace_model(model: nn.Module, guide_trace: Trace | None, episode: Episode, num_samples: int) -> Trace:
    """The model's sites under the guide's draws, however many these are, or so many of its own prior's, with the distribution
    of ``episode``'s query labels."""
    num_samples = draws_in(guide_trace, num_samples)
    replayed = nullcontext() if guide_trace is None else poutine.replay(trace=guide_trace)
    with evaluating(model), poutine.trace() as tracer, Unread(), replayed, draws_plate(num_samples):
        model(*episode.unlabelled())
    return prune_subsample_sites(tracer.trace)


def labels_of(trace: Trace) -> Any:
    """The distribution of the observed site."""
    return trace.nodes[LABELS]["fn"]


def draws_in(trace: Trace | None, otherwise: int) -> int:
    """How many draws the latent sites of a trace have; ``otherwise`` where there are none."""
    sites = [] if trace is None else [trace.nodes[name] for name in trace.stochastic_nodes]
    sizes = (frame.size for site in sites for frame in site["cond_indep_stack"] if frame.name == DRAWS)
    return next(sizes, otherwise)


def is_determined(trace: Trace) -> bool:
    """Whether all latent sites are points, the same in all draws, or there are none."""
    sites: list[Any] = [trace.nodes[name]["fn"] for name in trace.stochastic_nodes]
    return all(is_point(fn) and repeats(innermost(fn).v) for fn in sites)


def draws_plate(draws: int) -> pyro.plate:
    """The plate of posterior draws, left of all others.

    Raises:
        ValueError: no draws.
    """
    if draws < 1:
        raise ValueError(f"num_samples = {draws} must be 1 or more")
    return pyro.plate(DRAWS, draws, dim=DRAWS_DIM)


def total_rate(model_trace: Trace, guide_trace: Trace) -> Tensor | None:
    """Σ KL(q ‖ p) over the tasks' own latent sites, nats: ``[tasks]``.

    A site outside the plate ``tasks`` (hyperparameters) belongs to no task and is not counted, nor is one that the guide draws
    from the model's prior, see :class:`~guides.tasks.query_informed.QueryInformedGuide`.
    """
    total = None
    for name in guide_trace.stochastic_nodes:
        site: Any = guide_trace.nodes[name]
        if name not in model_trace or not is_of_tasks(site) or site["infer"].get(FROM_PRIOR):
            continue
        if is_point(site["fn"]):
            return None
        posterior, prior = of_one_draw(site["fn"], model_trace.nodes[name]["fn"])
        rate = divergence(posterior, prior, site["value"])
        rate = rate.mean(0).sum(tuple(range(1, rate.dim() - 1)))  # over draws, and over plates inside a task
        total = rate if total is None else total + rate
    return total


def of_one_draw(*distributions: Any) -> tuple[Any, ...]:
    """Gaussians ``[draws, ...]`` that are the same under all draws as those of one draw, ``[1, ...]``; others as they are."""
    if not all(is_gaussian(fn) and repeats(innermost(fn).loc) and repeats(innermost(fn).scale) for fn in distributions):
        return distributions
    return tuple(
        dist.Normal(innermost(fn).loc[:1], innermost(fn).scale[:1]).to_event(len(fn.event_shape)) for fn in distributions
    )


def divergence(posterior: Any, prior: Any, drawn: Tensor) -> Tensor:
    """KL(posterior ‖ prior), or where no closed form is registered its estimate log q − log p at each ``drawn`` value; nats."""
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        return posterior.log_prob(drawn) - prior.log_prob(drawn)
