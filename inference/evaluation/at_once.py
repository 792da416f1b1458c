"""What all readings of one guide say of the same tasks, at once and without Pyro's handlers.

Traces of four readings cost more than all their arithmetic. Where guide and model say their sites themselves, as in training
(:mod:`inference.direct`), posteriors are points or independent Gaussians of each task, and the predictor is one of ours
(:func:`~models.tasks.predictors.takes_mirrored`), the readings' parameters are stacked and the model is asked once.
:func:`inference.evaluation.predictive.predictives` says the same of any programs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import validation_enabled as validate_distributions
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.distributions import kl_divergence

from data.episodes import Episode
from data.seeding import part_of_batch, seeded
from inference.direct import Hidden, NothingHidden
from inference.elbo import innermost, local_parameters
from inference.evaluation.predictive import LABELS, CommonNoise, Predictive, is_gaussian, is_point, visible
from models.distributions.mirrored import Mirrored
from models.networks.layers import evaluating
from models.plates import ordered_like
from models.sites import Site, says_its_sites

Sites = Mapping[str, Site]


@torch.no_grad()
def predictives_at_once(
    model: Any,
    guides: Sequence[Any],
    episode: Episode,
    noise: CommonNoise,
    *,
    numbers: int,
    num_samples: int = 32,
    first: int = 0,
    batch: int,
) -> Iterator[Predictive]:
    """Of some readings after the others: ``labels`` have batch_shape ``[draws, readings, tasks, query]``, ``rate`` is
    ``[readings, tasks]``. What the distributions are made of is not checked.

    Args:
        model, noise, num_samples, first, batch: see :func:`~inference.evaluation.predictive.predictives`.
        guides: one, or the readings of one after 0, 1, … of its steps.
        episode: whose query labels guides see that say so; the model does not.
        numbers: of draws and outputs that may be held at a time; one reading is held in any case.

    Raises:
        Hidden: the programs have to be traced.
    """
    if am_i_wrapped() or num_samples < 1 or not getattr(model, "takes_mirrored", False):
        raise Hidden
    place = slice(first, first + len(episode.query_x)), batch
    with unwatched(), part_of_batch(*place):
        posteriors = posteriors_of(guides, episode, noise.seed)
    draws = 1 if all(map(is_point, posteriors.values())) else num_samples
    at_once = max(1, numbers // numbers_of_one(posteriors, episode, draws))
    for start in range(0, len(guides), at_once):
        with unwatched(), part_of_batch(*place):
            some = {name: part_of(fn, slice(start, start + at_once)) for name, fn in posteriors.items()}
            drawn = {name: draw(fn, noise, name, draws) for name, fn in some.items()}
            if draws % 2:
                drawn = {name: written(value)[:draws] for name, value in drawn.items()}
            densities = model_sites(model, drawn, episode)
            labels, readings = densities[LABELS].distribution, len(guides[start : start + at_once])
            if labels.batch_shape != (draws, readings, *episode.query_x.shape[:2]):  # they do not depend on what is drawn
                raise Hidden
            one = Predictive(labels, rate_of(some, densities))
        yield one  # outside, where labels that it is asked of are checked as ever


@contextmanager
def unwatched() -> Iterator[None]:
    """Inside, programs run as they stand: their parameters are their own, and nothing is sampled or checked."""
    with local_parameters(), NothingHidden(), validate_distributions(False):
        yield


def posteriors_of(guides: Sequence[Any], episode: Episode, seed: int) -> dict[str, Any]:
    """What each of the ``guides`` samples under the noise of this ``seed``: points or Gaussians, batch_shape
    ``[readings, tasks, 1]``.

    Raises:
        Hidden: they do not say, or sample something else.
    """
    guide = guides[-1]
    if getattr(guide, "correlated", False):  # known before it is unrolled
        raise Hidden
    if len(guides) > 1:
        if not are_readings(guides):
            raise Hidden
        guide = guide.at_every_step()
    given = visible(guide, episode)
    with evaluating(guide), seeded(seed, device=episode.query_x.device):
        if not says_its_sites(guide, *given):
            raise Hidden
        sites = guide.sites(*given)
    shape = len(guides), len(episode.query_x), 1
    if not sites or not all(site.plates == shape[1:] and is_of_rows(site.distribution) for site in sites.values()):
        raise Hidden
    fronts = [site.distribution.batch_shape[:-2] for site in sites.values()]
    if any(front != (shape[:1] if len(guides) > 1 else ()) for front in fronts):  # one posterior of all steps, or particles
        raise Hidden
    return {name: site.distribution.expand(shape) for name, site in sites.items()}


def are_readings(guides: Sequence[Any]) -> bool:
    """Whether the ``guides`` are one after 0, 1, … of its steps, which can be read at every step."""
    last, steps = guides[-1], [getattr(reading, "steps", None) for reading in guides]
    parts = [list(map(id, reading.children())) for reading in guides]
    return hasattr(last, "at_every_step") and steps == list(range(len(guides))) and all(own == parts[-1] for own in parts)


def is_of_rows(fn: Any) -> bool:
    """Whether ``fn`` is a point or a Gaussian over rows of weights, nothing of which is masked."""
    plain = getattr(fn, "base_dist", fn) is innermost(fn)
    return plain and len(fn.event_shape) == 2 and (is_point(fn) or is_gaussian(fn))


def model_sites(model: Any, drawn: Mapping[str, Tensor | Mirrored], episode: Episode) -> Sites:
    """What the ``model`` samples where the guide has ``drawn`` these.

    Raises:
        Hidden: it does not say, or not all of it.
    """
    unread = torch.zeros((), dtype=torch.long, device=episode.query_x.device).expand(episode.query_x.shape[:2])
    given = episode._replace(query_y=unread)
    with evaluating(model):
        if not says_its_sites(model, *given):
            raise Hidden
        densities = model.sites(drawn, *given)
    if not (drawn.keys() <= densities.keys() and densities[LABELS].is_whole):
        raise Hidden
    return densities


def numbers_of_one(posteriors: Mapping[str, Any], episode: Episode, draws: int) -> int:
    """How many deviations and outputs one of the ``posteriors`` has; a deviation is of two draws."""
    weights = sum(fn.shape()[1:].numel() for fn in posteriors.values())
    return math.ceil(draws / 2) * weights + draws * (episode.way or 1) * episode.query_x.shape[:2].numel()


def part_of(fn: Any, readings: slice) -> Any:
    """The distribution of some ``readings``."""
    within = innermost(fn)
    if is_point(fn):
        return dist.Delta(within.v[readings], event_dim=2)
    return dist.Normal(within.loc[readings], within.scale[readings]).to_event(2)


def draw(fn: Any, noise: CommonNoise, name: str, draws: int) -> Tensor | Mirrored:
    """Draws of the site ``name``, distributed as ``fn``: those that the ``noise`` gives each reading by itself.

    Returns:
        ``[1, readings, tasks, 1, rows, D]`` of points, of Gaussians a pair for every two of so many ``draws``.
    """
    if is_point(fn):
        return innermost(fn).v[None]
    mean, scale = innermost(fn).loc, innermost(fn).scale
    shape = math.ceil(draws / 2), *mean.shape[1:]
    drawn = noise.of_site(shape, name=name, like=mean, of_tasks=True)
    # in memory task by task, as products of each task with all its draws read them
    by_task, scale, drawn = mean.movedim(1, 0)[:, None], scale.movedim(1, 0)[:, None], drawn.movedim(1, 0)[:, :, None]
    return Mirrored(mean, ordered_like(by_task, drawn).mul_(scale).movedim(0, 2))


def written(drawn: Tensor | Mirrored) -> Tensor:
    """All that is ``drawn``, ``[draws, ...]``."""
    return drawn.written() if isinstance(drawn, Mirrored) else drawn


def rate_of(posteriors: Mapping[str, Any], densities: Sites) -> Tensor | None:
    """Σ KL(q ‖ p) of the ``posteriors``, nats, ``[readings, tasks]``, p among the model's ``densities``; ``None`` of points.

    Raises:
        Hidden: there is no closed form.
    """
    if any(is_point(fn) for fn in posteriors.values()):
        return None
    try:
        rates = [kl_divergence(fn, densities[name].distribution) for name, fn in posteriors.items()]
    except NotImplementedError as error:
        raise Hidden from error
    return torch.stack(rates).sum((0, -1))
