"""Tasks with the inputs themselves, features of them, and the loop that trains on them."""

import pytest
import torch
from torch import nn

from data.episodes import Episode
from data.regression import radial_basis
from data.seeding import seeded
from inference.meta.regression_fits import (
    QUICK,
    SCALE_SPEED,
    Bumps,
    Fit,
    Setup,
    Trunk,
    fit_on_tasks,
    initial_weights,
    predictor_of,
    raw_tasks,
    whole,
)
from inference.meta.regression_guides import CLIP
from inference.meta.regression_tasks import Problem
from inference.meta.settings import GuideSettings, MetaSchedule
from models.tasks.predictors import LinearPredictor


def test_raw_sinusoids_are_those_of_the_problem():
    problem = Problem("sinusoids")
    raw, given = raw_tasks(problem, 7, queries=4, seed=3), problem.tasks(7, queries=4, seed=3)
    assert raw.support_x.shape == (7, 10, 1)
    assert raw.query_x.dtype == torch.float64
    assert torch.equal(raw.query_y, given.query_y)
    torch.testing.assert_close(Bumps()(raw.support_x), given.support_x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "network"])
def test_other_tasks_are_the_problems_own(name):
    raw, given = raw_tasks(Problem(name), 5, queries=4, seed=3), Problem(name).tasks(5, queries=4, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(raw[:4], given[:4], strict=True))


def test_all_points_of_a_task_are_support_and_scored():
    tasks = raw_tasks(Problem("linear"), 3, queries=4, seed=0)
    both = whole(tasks)
    assert torch.equal(both.support_x, torch.cat([tasks.support_x, tasks.query_x], 1))
    assert torch.equal(both.query_y, torch.cat([tasks.support_y, tasks.query_y], 1))
    assert torch.equal(both.query_x, both.support_x)
    assert torch.equal(both.support_y, both.query_y)


@pytest.mark.parametrize("name", ["network", "sinusoids"])
def test_weights_start_as_those_of_torchs_layers(name):
    predictor = predictor_of(Problem(name))
    with seeded(4):
        flat = initial_weights(predictor, 1)
    with seeded(4):
        layers = [nn.Linear(*shape) for shape in predictor.shapes]
    activation = nn.Tanh() if name == "network" else nn.ReLU()
    net = nn.Sequential(*[part for layer in layers for part in (layer, activation)][:-1])
    x = torch.linspace(-3, 3, 9)[:, None]
    torch.testing.assert_close(predictor(x[None], flat[None, None])[0], net(x))


def test_a_trunk_is_the_hidden_layers_and_one():
    trunk, x = Trunk(Problem("sinusoids")), torch.randn(2, 5, 1)
    first, second = trunk.layers
    assert trunk.num_features == 41
    torch.testing.assert_close(trunk(x)[..., :40], second(first(x).relu()).relu())
    assert torch.equal(trunk(x)[..., 40], torch.ones(2, 5))


def test_bumps_are_the_radial_basis():
    x = torch.randn(3, 4, 1)
    assert torch.equal(Bumps()(x), radial_basis(x[..., 0]))


def test_linear_weights_start_at_zero():
    predictor = predictor_of(Problem("linear"))
    assert isinstance(predictor, LinearPredictor)
    assert torch.equal(initial_weights(predictor, 3), torch.zeros(3))


class Quadratic(nn.Module):
    """Σ over tasks of (loc − y)² + log_scale²: an objective of which Adam's first step is known."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def forward(self, *episode):
        self.seen.append(Episode(*episode))
        return 1e6 * len(episode[2]) * (self.loc**2 + self.log_scale**2)


def test_the_loop_draws_fresh_tasks_and_learns_logarithms_faster():
    objective, setup = Quadratic(), Setup(Problem("linear"), GuideSettings(), MetaSchedule(6, batch=2, learning_rate=0.01), 3)
    numbers = []
    fit_on_tasks(Fit(objective), setup.draw, setup.schedule, watch=numbers.append)
    assert numbers == [0, 1, 2]
    first, second, third = objective.seen
    assert not torch.equal(first.query_x, second.query_x)
    assert first.query_y.shape == (2, 3)
    moved = 1 - objective.loc.item()
    assert moved == pytest.approx(0.01 * (1 + 0.75 + 0.25), rel=0.05), "Adam's steps, which a cosine makes smaller"
    assert 1 - objective.log_scale.item() == pytest.approx(SCALE_SPEED * moved, rel=0.1)
    assert "log_noise" in QUICK
    assert objective.loc.grad.square() + objective.log_scale.grad.square() == pytest.approx(CLIP**2, rel=1e-3)
    again = Quadratic()
    fit_on_tasks(Fit(again), setup.draw, setup.schedule)
    assert all(torch.equal(one.query_x, other.query_x) for one, other in zip(objective.seen, again.seen, strict=True))
    assert len(third) == 5
