"""Temperatures: the one that makes a learner as sure as it is right, from its own draws, and for what it is good."""

import math

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import evaluate
from inference.meta.settings import MetaSchedule
from inference.meta.temperature import GRID, fit_temperature, tempered_nll
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


def kinds():
    return (EpisodeSampler(gaussian_bank(), TaskSpec(way=WAY, shot=1, queries=5)),)


def nll(objective) -> float:
    return evaluate(objective.model, objective.guide, kinds()[0], tasks=40, seed=4).nll


def test_it_is_the_temperature_with_the_lowest_nll():
    """By evaluating the learner at each of a few."""
    objective = objective_of(sharp=40.0)
    likelihood = objective.model.likelihood
    found = fit_temperature(objective, kinds(), SCHEDULE)
    assert found == pytest.approx(float(likelihood.log_temperature.exp()))
    best = nll(objective)
    for other in GRID[::4].tolist():
        likelihood.log_temperature.fill_(math.log(other))
        assert nll(objective) >= best - 1e-6
    assert found > 1.2, "far too sure, and so softened"


def test_what_is_not_too_sure_stays_as_it_is():
    objective = objective_of(sharp=0.5)
    assert fit_temperature(objective, kinds(), SCHEDULE) == 1
    objective.model.likelihood = CategoricalLikelihood()
    assert fit_temperature(objective, kinds(), SCHEDULE) == 1, "one without a temperature"


def test_it_averages_probabilities_of_draws_and_not_their_logarithms():
    logits, labels = torch.randn(7, 2, 3, 4), torch.tensor([[0, 1, 3], [2, 2, 0]])
    probabilities = (logits / GRID[5]).softmax(-1).mean(0)
    expected = -probabilities.gather(-1, labels[..., None])[..., 0].log().mean(-1)
    torch.testing.assert_close(tempered_nll(logits, labels)[5], expected.double(), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_tempered_likelihood_is_its_own():
    likelihood = TemperedCategorical().double()
    likelihood.log_temperature.fill_(0.4)
    outputs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 2])
    (expected,) = torch.autograd.grad(-likelihood(outputs).log_prob(labels).sum(), outputs)
    torch.testing.assert_close(likelihood.output_gradient(outputs.detach(), labels), expected)


def test_files_of_before_have_temperature_one():
    likelihood = TemperedCategorical()
    likelihood.log_temperature.fill_(0.4)
    likelihood.load_state_dict({})
    assert float(likelihood.log_temperature) == 0
