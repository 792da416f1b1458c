"""Temperatures: the one that makes a learner as sure as it is right, from its own draws, and for what it is good."""

import math
from dataclasses import replace
from statistics import linear_regression

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import evaluate
from inference.meta.settings import MetaSchedule
from inference.meta.temperature import GRID, fit_temperature, plane, tempered_nll
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import WAY, build

SCHEDULE = MetaSchedule(tasks=64, batch=8, validations=2, validation_tasks=40, seed=4)


def objective_of(sharp: float):
    torch.manual_seed(0)
    model, guide = build(beta=0.1, steps=1)
    model.likelihood = TemperedCategorical()
    model.predictor.log_scale.data.fill_(math.log(sharp))
    return RateDistortionELBO(beta=0.1)(model, guide)


def kinds(*shapes: tuple[int, int]):
    """Of these shots and ways."""
    shapes = shapes or ((1, WAY),)
    return tuple(EpisodeSampler(gaussian_bank(), TaskSpec(way=way, shot=shot, queries=5)) for shot, way in shapes)


def nll(objective, *shape: int) -> float:
    return evaluate(objective.model, objective.guide, kinds(shape or (1, WAY))[0], tasks=40, seed=4).nll


@pytest.mark.parametrize("sharp", [40.0, 2.0])
def test_it_is_the_temperature_with_the_lowest_nll(sharp):
    """By evaluating the learner at each of a few; one that is far too sure is softened, one that is too careful sharpened."""
    objective = objective_of(sharp=sharp)
    likelihood = objective.model.likelihood
    found = fit_temperature(objective, kinds(), SCHEDULE)[1, WAY]
    assert found == pytest.approx(float(likelihood.log_temperature.exp()))
    assert not likelihood.powers.any(), "one shape says nothing of others"
    best = nll(objective)
    for other in GRID[::4].tolist():
        likelihood.log_temperature.fill_(math.log(other))
        assert nll(objective) >= best - 1e-6
    assert found > 1.2 if sharp > 10 else found < 0.9


def test_each_shape_has_its_own():
    """Three shapes have two powers between them."""
    objective = objective_of(sharp=40.0)
    likelihood, shapes = objective.model.likelihood, ((1, WAY), (6, WAY), (1, 2))
    found = fit_temperature(objective, kinds(*shapes), replace(SCHEDULE, validation_tasks=120))
    assert len({round(temperature, 2) for temperature in found.values()}) == 3
    for shape in shapes:
        alone = objective_of(sharp=40.0)
        assert found[shape] == pytest.approx(fit_temperature(alone, kinds(shape), SCHEDULE)[shape], rel=1e-5)
        assert nll(objective, *shape) == pytest.approx(nll(alone, *shape), abs=1e-5)
    between = 1 / float(likelihood.given(6**0.5, WAY).inverse)
    assert between == pytest.approx((found[1, WAY] * found[6, WAY]) ** 0.5)
    assert float(likelihood.given(0, WAY).inverse) == pytest.approx(1 / found[1, WAY]), "no support counts as one item"


def test_a_plane_is_the_nearest_and_level_where_points_do_not_differ():
    x = [(0.0, 2.0), (1.0, 2.0), (3.0, 2.0)]
    offset, slopes = plane(x, [1.0, 2.0, 5.0])
    expected = linear_regression([a for a, _ in x], [1.0, 2.0, 5.0])
    assert slopes.tolist() == pytest.approx([expected.slope, 0.0])
    assert offset == pytest.approx(expected.intercept)


def test_a_bound_stays_the_bound_that_was_trained():
    objective = objective_of(sharp=40.0)
    objective.elbo.beta = 1.0
    assert fit_temperature(objective, kinds(), SCHEDULE) == {}
    assert float(objective.model.likelihood.log_temperature) == 0


def test_a_likelihood_without_a_temperature_stays_as_it_is():
    objective = objective_of(sharp=0.5)
    objective.model.likelihood = CategoricalLikelihood()
    assert fit_temperature(objective, kinds(), SCHEDULE) == {}


def test_it_averages_probabilities_of_draws_and_not_their_logarithms():
    logits, labels = torch.randn(7, 2, 3, 4).double(), torch.tensor([[0, 1, 3], [2, 2, 0]])
    for shift in (0.0, 1000 * torch.randn(7, 2, 3, 1).double()):  # of which no power is a number
        given = logits + shift
        kept, found = given.clone(), tempered_nll(given, labels)
        for number, temperature in enumerate(GRID):
            probabilities = (logits / temperature).softmax(-1).mean(0)
            expected = -probabilities.gather(-1, labels[..., None])[..., 0].log().mean(-1)
            torch.testing.assert_close(found[number], expected, atol=1e-9, rtol=1e-9)
        assert torch.equal(given, kept)
    single = tempered_nll(logits.float(), labels)  # is compared, temperature by temperature, in double precision
    torch.testing.assert_close(single, tempered_nll(logits, labels), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_tempered_likelihood_is_its_own():
    likelihood = TemperedCategorical().double()
    likelihood.log_temperature.fill_(0.4)
    likelihood.powers.copy_(torch.tensor([-0.7, 0.2]))
    likelihood = likelihood.given(3, 5)
    assert float(likelihood.inverse) == pytest.approx(math.exp(-0.4) * 3**0.7 / 5**0.2)
    outputs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 2])
    (expected,) = torch.autograd.grad(-likelihood(outputs).log_prob(labels).sum(), outputs)
    torch.testing.assert_close(likelihood.output_gradient(outputs.detach(), labels), expected)


def test_files_of_before_have_temperature_one():
    likelihood = TemperedCategorical()
    likelihood.log_temperature.fill_(0.4)
    likelihood.powers.fill_(0.4)
    likelihood.load_state_dict({})
    assert float(likelihood.log_temperature) == float(likelihood.powers.abs().max()) == 0
