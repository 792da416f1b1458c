"""The regression problems of ``svi_sib``: their tasks, their model, and what exact Bayes says of them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.curves import (
    KNOWN_AMPLITUDES,
    memorisable_log_predictive,
    memorisable_sinusoid_tasks,
    sinusoid_or_line_tasks,
)
from data.episodes import Episode
from data.poses import TargetSampler
from data.regression import (
    linear_posterior,
    linear_tasks,
    network_prior,
    network_tasks,
    radial_basis,
    radial_inputs,
    sinusoid_log_predictive,
    sinusoid_or_line_log_predictive,
    sinusoid_tasks,
)
from data.seeding import mix_seed
from data.sources.glyph_attributes import LARGEST, load_posed_glyphs
from inference.diagnostics.regret import linear_log_predictive
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor, PerceptronPredictor
from models.tasks.priors import GaussianPrior

LINEAR_PRIOR = (torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.7, 0.3, 1.2]))
MEMORISABLE, USED = "memorisable", 16
"""The problem whose training tasks can be learned by heart, and how many amplitudes they have: those of the code of Yin et al.
2020."""
AMBIGUOUS = "ambiguous"
"""The problem whose few points leave open what a task is: a sinusoid or a line."""
POSES, PIXELS, LETTERS, PICTURES = "poses", 16, 240, 40
"""The problem whose tasks are letters, turned from how they lie; height and width of its pictures; training letters, of which
each is a task, and pictures of each."""
UNIT = 10 / (2 * LARGEST)
"""What makes angles tenths of their range, as the authors' code of Yin et al. 2020 has them."""
NOISE = {"linear": 0.5, "network": 0.2, "sinusoids": 0.1, MEMORISABLE: 0.1, AMBIGUOUS: 0.3, POSES: 0.0}
"""The true standard deviation of each problem's targets."""
HIDDEN = 20  # units of the network that tasks of `network` are drawn from
SUPPORT = 10
SUPPORTS = {AMBIGUOUS: 5, POSES: 15}
"""Support points of problems that usually have not ten."""
SINUSOIDS_AT_ONCE = 20  # tasks whose phases are integrated at once


@dataclass(frozen=True)
class Problem:
    """A family of regression tasks, by name.

    Attributes:
        name: ``linear``, ``network``, ``sinusoids``, ``memorisable``, ``ambiguous`` or ``poses``.
        shot: support points per task; the problem's usual number when not given.
    """

    name: str
    shot: int = 0

    def __post_init__(self) -> None:
        if not self.shot:
            object.__setattr__(self, "shot", SUPPORTS.get(self.name, SUPPORT))  # frozen from here on

    @property
    def is_linear(self) -> bool:
        """Whether ŷ is linear in w, so that the posterior is Gaussian and known."""
        return self.name in ("linear", "sinusoids")

    @property
    def noise(self) -> float:
        """The true standard deviation."""
        return NOISE[self.name]

    @property
    def num_weights(self) -> int:
        """D."""
        sizes = {"linear": len(LINEAR_PRIOR[0]), "network": 3 * HIDDEN + 1}
        return sizes[self.name] if self.name in sizes else radial_basis(torch.zeros(1)).shape[-1]

    @property
    def num_inputs(self) -> int:
        """Numbers of an input, as it is."""
        if self.image_shape is not None:
            return math.prod(self.image_shape)
        return {"linear": len(LINEAR_PRIOR[0]), MEMORISABLE: 1 + KNOWN_AMPLITUDES[2]}.get(self.name, 1)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of inputs that are images, as vectors of their pixels; ``None`` of others."""
        return (1, PIXELS, PIXELS) if self.name == POSES else None

    @property
    def num_tasks(self) -> int | None:
        """How many training tasks there are; ``None`` where each is a new one."""
        return LETTERS if self.name == POSES else None

    def tasks(self, count: int, *, queries: int, seed: int, split: str = "train") -> Episode:
        """A batch of ``count`` tasks with :attr:`shot` support points, in double precision: the precision matrix of forty
        overlapping basis functions is nearly singular.

        Args:
            split: train, val or test. Tasks of ``memorisable`` for validation and test are of any amplitude, and what they tell
                of it is wrong (Yin et al. 2020); ``poses`` have letters of other scripts in each.
        """
        if self.name == POSES:
            return posed_letters(split, self.shot, queries).sample(count, seed=seed).to(dtype=torch.float64)
        sizes: dict[str, Any] = {"support": self.shot, "noise": self.noise, "seed": seed}
        if self.name == "linear":
            episode = linear_tasks(count, queries, *LINEAR_PRIOR, **sizes)
        elif self.name == "network":
            episode = network_tasks(count, queries, *network_prior(HIDDEN), **sizes)
        elif self.name == MEMORISABLE:
            episode = memorisable_sinusoid_tasks(count, queries=queries, used=USED, new=split != "train", **sizes)
        elif self.name == AMBIGUOUS:
            episode = sinusoid_or_line_tasks(count, queries=queries, **sizes)
        else:
            episode = sinusoid_tasks(count, queries=queries, **sizes)
        return episode.to(dtype=torch.float64)

    def model(self) -> EmpiricalBayesModel:
        """The program in double precision.

        Linear problems learn prior and noise, from N(0, 1) and 1. The network's are the truth and stay so: of a nonlinear model
        neither could be learned but through an approximate posterior, and what differs from NUTS would be two things at once.
        """
        if self.is_linear:
            prior = GaussianPrior(torch.zeros(self.num_weights), torch.ones(self.num_weights))
            model = EmpiricalBayesModel(prior, LinearPredictor(1.0, learned=False), GaussianLikelihood(1.0))
        else:
            prior = GaussianPrior(*network_prior(HIDDEN), learned=False)
            likelihood = GaussianLikelihood(self.noise, learned=False)
            model = EmpiricalBayesModel(prior, PerceptronPredictor((1, HIDDEN, 1)), likelihood)
        return model.double()


@functools.lru_cache(maxsize=8)
def posed_letters(split: str, support: int, queries: int) -> TargetSampler:
    """Tasks of ``poses``: the letters of a ``split``, always the same ones, as pixels in [0, 1], and their angles in
    :data:`UNIT`, with so many pictures in ``support`` and ``queries``.

    How a letter lies is its secret: who knows it tells the angle from one picture, of a letter that is new only with a support.
    Source: Yin et al. 2020, section 6.2, with letters in the place of objects.
    """
    posed = load_posed_glyphs(split, PIXELS, images=PICTURES, max_letters=LETTERS)
    pixels = replace(posed.source, items=posed.source.items.flatten(1).float() / 255)
    return TargetSampler(pixels, UNIT * posed.targets, support=support, queries=queries)


def regression_tasks(name: str, tasks: int, *, queries: int, seed: int) -> Episode:
    """A batch of tasks of a problem by name, see :meth:`Problem.tasks`."""
    return Problem(name).tasks(tasks, queries=queries, seed=seed)


VALIDATION, TEST = 0, 1  # streams of tasks


def stream_seed(seed: int, training_tasks: int, stream: int) -> int:
    """The seed of the tasks of a stream, of which training has ``training_tasks``; the same for every guide."""
    return mix_seed(seed, training_tasks, 1, stream)


def exact_log_predictive(episode: Episode) -> Tensor:
    """log p(y given x, support) of linear tasks under the true prior and noise, nats, each query by itself: ``[tasks, query]``.
    No method can do better on average."""
    assert episode.query_y is not None
    noise = NOISE["linear"]
    loc, scale = (part.to(episode.support_x) for part in LINEAR_PRIOR)
    mean, covariance = linear_posterior(episode.support_x, episode.support_y, loc, scale, noise)
    return linear_log_predictive(mean, covariance, episode.query_x, episode.query_y, noise)


def exact_sinusoid_predictive(episode: Episode) -> Tensor:
    """The same of sinusoids, under the law of amplitude and phase that they are drawn from; a model that is linear in bumps
    knows nothing of it."""
    assert episode.query_y is not None
    parts = []
    for start in range(0, len(episode.query_x), SINUSOIDS_AT_ONCE):
        some = episode.tasks(slice(start, start + SINUSOIDS_AT_ONCE))
        assert some.query_y is not None
        support_x, query_x = radial_inputs(some.support_x), radial_inputs(some.query_x)
        parts.append(sinusoid_log_predictive(support_x, some.support_y, query_x, some.query_y, NOISE["sinusoids"]))
    return torch.cat(parts)


def exact_memorisable_predictive(episode: Episode) -> Tensor:
    """The same of new tasks of sinusoids that can be memorised, under the law of their amplitudes; what they tell of it is
    rightly ignored."""
    assert episode.query_y is not None
    support_u, query_u = episode.support_x[..., 0], episode.query_x[..., 0]
    return memorisable_log_predictive(support_u, episode.support_y, query_u, episode.query_y, NOISE[MEMORISABLE])


def exact_ambiguous_predictive(episode: Episode) -> Tensor:
    """The same of sinusoids or lines, of the inputs themselves."""
    assert episode.query_y is not None
    parts = []
    for start in range(0, len(episode.query_x), SINUSOIDS_AT_ONCE):
        some = episode.tasks(slice(start, start + SINUSOIDS_AT_ONCE))
        assert some.query_y is not None
        inputs = (some.support_x[..., 0], some.support_y, some.query_x[..., 0], some.query_y)
        parts.append(sinusoid_or_line_log_predictive(*inputs, NOISE[AMBIGUOUS]))
    return torch.cat(parts)


EXACT = {
    "linear": exact_log_predictive,
    "sinusoids": exact_sinusoid_predictive,
    MEMORISABLE: exact_memorisable_predictive,
    AMBIGUOUS: exact_ambiguous_predictive,
}
"""Exact Bayes of the problems where it is known."""


def exact_nll(episode: Episode) -> float:
    """Mean of −log p(y given x, support) of linear tasks, nats per query; see :func:`exact_log_predictive`."""
    return float(-exact_log_predictive(episode).mean())
