"""What a meta-learner of regression tasks is before and after training, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data.curves import raw_sinusoid_tasks
from data.episodes import Episode
from data.regression import radial_basis
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.predictive import place_of
from inference.meta.regression_guides import descend
from inference.meta.regression_tasks import HIDDEN, Problem
from inference.meta.settings import GuideSettings, MetaSchedule
from models.networks.functional import FunctionalNetwork
from models.networks.strided import OfPixels, strided_layers
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import LinearPredictor, PerceptronPredictor
from models.tasks.scorers.process import perceptron

SCALE_SPEED, QUICK = 10.0, ("log_noise", "log_scale", "log_size")  # how many times faster logarithms are learned, and which
LINEAR_SPEED = 10.0  # how many times faster linear models are
PARTICLES = 4  # posterior draws per task and training step
WIDTH = 40  # units of both hidden layers of networks on sinusoids, and on codes of images
IMAGE_CODES = 64  # numbers that an image is read as, usually
Adaptable = LinearPredictor | PerceptronPredictor | NetworkPredictor
"""ŷ whose weights are adapted."""
DRAWN = 400
"""Posterior draws of the predictive distribution."""


@dataclass(frozen=True)
class Setup:
    """What every method of a run is built and trained with.

    Attributes:
        problem: of the tasks.
        guide: of SIB's guide.
        schedule: of training.
        queries: per task.
    """

    problem: Problem
    guide: GuideSettings
    schedule: MetaSchedule
    queries: int

    @property
    def num_tasks(self) -> int:
        """n, the training tasks that there are: as many as are drawn, but where some are drawn again."""
        return self.problem.num_tasks or self.schedule.tasks

    def draw(self, tasks: int, seed: int, *, split: str = "train") -> Episode:
        """So many ``tasks`` of a ``split``, train, val or test, with the inputs themselves."""
        return raw_tasks(self.problem, tasks, queries=self.queries, seed=seed, split=split)


class Fit(nn.Module):
    """A model and its guide with the inputs that they read.

    Args:
        objective: model, guide and objective.
        space: what inputs go through before model and guide see them; nothing when not given.
        draws: of the posterior, that predictions are made of.
    """

    def __init__(self, objective: RateDistortionModule, space: nn.Module | None = None, *, draws: int = DRAWN) -> None:
        super().__init__()
        self.objective, self.space = objective, space if space is not None else nn.Identity()
        self.draws = draws

    @property
    def model(self) -> Any:
        """The program."""
        return self.objective.model

    @property
    def guide(self) -> Any:
        """The posterior."""
        return self.objective.guide

    def embed(self, episode: Episode) -> Episode:
        """Tasks as model and guide see them, in their precision."""
        _, dtype = place_of(self.objective)
        episode = episode.to(dtype=dtype)
        return episode._replace(support_x=self.space(episode.support_x), query_x=self.space(episode.query_x))

    def forward(self, episode: Episode) -> Tensor:
        """The loss of a batch of tasks, nats: of a rate that all tasks share, the batch's part."""
        loss = self.objective(*self.embed(episode))
        tasks = getattr(getattr(self.objective, "model", None), "num_tasks", None)
        return loss if tasks is None else loss * (len(episode.query_x) / tasks)


class Bumps(nn.Module):
    """:func:`~data.regression.radial_basis` of single numbers: ``[..., 1]`` to ``[..., 40]``."""

    def forward(self, x: Tensor) -> Tensor:
        return radial_basis(x[..., 0])


def raw_tasks(problem: Problem, tasks: int, *, queries: int, seed: int, split: str = "train") -> Episode:
    """So many ``tasks`` of :meth:`~inference.meta.regression_tasks.Problem.tasks`, of a ``split``, with the inputs themselves,
    in double precision."""
    if problem.name != "sinusoids":
        return problem.tasks(tasks, queries=queries, seed=seed, split=split)
    raw = raw_sinusoid_tasks(tasks, support=problem.shot, queries=queries, noise=problem.noise, seed=seed)
    return raw.to(dtype=torch.float64)


def objective_of(model: nn.Module, guide: nn.Module, beta: float, particles: int = 1) -> RateDistortionModule:
    """distortion + β · rate with so many ``particles``, posterior draws per task."""
    if particles == 1:
        return RateDistortionELBO(beta=beta)(model, guide)
    elbo = RateDistortionELBO(beta=beta, num_particles=particles, vectorize_particles=True, max_plate_nesting=2)
    return elbo(model, guide)


def predictor_of(problem: Problem) -> Adaptable:
    """ŷ of methods that adapt all weights: linear; the network that the tasks are drawn from; for sinusoids a perceptron with
    two hidden layers of 40 rectified units (Finn et al. 2017, section 5.1; Yin et al. 2020 too, in their code); the same on
    codes of images, by convolutions."""
    if problem.name == "linear":
        return LinearPredictor(1.0, learned=False)
    if problem.name == "network":
        return PerceptronPredictor((1, HIDDEN, 1))
    if problem.image_shape is not None:
        network = nn.Sequential(strided_layers(problem.image_shape, IMAGE_CODES), perceptron((IMAGE_CODES, WIDTH, WIDTH, 1)))
        return NetworkPredictor(FunctionalNetwork(network), 1, problem.image_shape)
    return PerceptronPredictor((problem.num_inputs, WIDTH, WIDTH, 1), torch.relu)


def encoder_of(problem: Problem, width: int, outputs: int) -> nn.Module:
    """A network from inputs, ``[..., n, D]``, to so many ``outputs``: of images by convolutions, of others by one hidden layer
    of rectified units, as many as the ``width``. As Yin et al. 2020 have them in their code."""
    if problem.image_shape is not None:
        return OfPixels(strided_layers(problem.image_shape, outputs), problem.image_shape)
    return perceptron((problem.num_inputs, width, outputs))


def initial_weights(predictor: Adaptable, num_features: int) -> Tensor:
    """Where the weights of a predictor start, ``[P]``: 0 of linear ones, as torch has them of layers."""
    if isinstance(predictor, NetworkPredictor):
        return predictor.network.flat()
    if isinstance(predictor, LinearPredictor):
        return torch.zeros(num_features)
    layers = [nn.Linear(*shape) for shape in predictor.shapes]
    return torch.cat([part.detach().flatten() for layer in layers for part in (layer.weight, layer.bias)])


class Trunk(nn.Module):
    """All but the last layer of :func:`predictor_of`'s network, and 1: features that are learned, for linear heads.

    Args:
        problem: ``network`` or ``sinusoids``.

    Attributes:
        num_features: D.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        predictor = predictor_of(problem)
        assert isinstance(predictor, PerceptronPredictor)
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in predictor.shapes[:-1])
        self.activation, self.num_features = predictor.activation, predictor.shapes[-1][0] + 1

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 1]`` to ``[..., D]``."""
        for layer in self.layers:
            x = self.activation(layer(x))
        return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def whole(episode: Episode) -> Episode:
    """The same tasks with all points as their support, and as what is scored: what a posterior's evidence is taken of."""
    assert episode.query_y is not None
    x, y = torch.cat([episode.support_x, episode.query_x], 1), torch.cat([episode.support_y, episode.query_y], 1)
    return Episode(x, y, x, y, episode.way)


def meta_train(fit: Fit, setup: Setup, view: Callable[[Episode], Episode] | None = None) -> Fit:
    """Minimise the objective over the tasks of a run; returns the fit.

    Args:
        view: what is scored of a batch of tasks: the queries when not given.
    """
    linear = isinstance(getattr(fit.model, "predictor", None), LinearPredictor) and not list(fit.space.parameters())
    rate = setup.schedule.learning_rate * (LINEAR_SPEED if linear else 1)

    def draw(count: int, seed: int) -> Episode:
        episode = setup.draw(count, seed)
        return episode if view is None else view(episode)

    fit_on_tasks(fit, draw, replace(setup.schedule, learning_rate=rate))
    return fit


def fit_on_tasks(
    fit: Fit, draw: Callable[..., Episode], schedule: MetaSchedule, *, watch: Callable[[int], None] | None = None
) -> None:
    """Minimise the objective over fresh tasks by Adam with a cosine decay; deterministic for a seed.

    Args:
        fit: what is trained, where anything is.
        draw: from a number, and a ``seed``, to tasks.
        watch: called with the number of each step before it.

    Raises:
        UserError: the loss is not finite.
    """
    named = {name: p for name, p in fit.named_parameters() if p.requires_grad}
    if not named:
        return
    quick = [name for name in named if name.rpartition(".")[2] in QUICK]
    groups = [
        {"params": [p for name, p in named.items() if (name in quick) is yes], "lr": rate * schedule.learning_rate}
        for yes, rate in ((False, 1.0), (True, SCALE_SPEED))
    ]
    descend(fit, draw, torch.optim.Adam([group for group in groups if group["params"]]), schedule, watch)
