"""Losses of particles, against what they say in words."""

import math

import pytest
import torch
from torch.distributions import Normal

from models.tasks.particles import ParticleModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior
from tests.guides.tasks.test_particles import M, network_pair, objective_of, regression


@pytest.fixture(autouse=True)
def double(float64):
    pass


def log_densities(model, guide, task):
    """log p(y given x, θ_m), ``[M, tasks, query]``."""
    outputs = guide.predictor(task.query_x, guide.unroll(*task)[-1].loc)[..., 0]
    return Normal(outputs, model.likelihood.log_noise.exp()).log_prob(task.query_y)


@pytest.mark.parametrize("loss", ["mixture", "distortion"])
def test_losses_of_labels(loss):
    (model, guide), task = network_pair(loss=loss), regression()
    logs = log_densities(model, guide, task)
    expected = (logs.logsumexp(0) - math.log(M)).sum() if loss == "mixture" else logs.sum() / M
    found = objective_of(model, guide)(*task)
    torch.testing.assert_close(found, -expected, rtol=1e-10, atol=1e-10)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    for one, other in zip(*(torch.autograd.grad(x, parameters) for x in (found, -expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_in_evaluation_labels_are_of_each_particle_and_nothing_leads():
    (model, guide), task = network_pair(loss="chaser"), regression()
    terms = objective_of(model.eval(), guide).terms(*task)
    assert set(terms.distortions) == {"labels"}
    torch.testing.assert_close(terms.distortion, -log_densities(model, guide, task).sum() / M)


def constant(weights):
    """−log N(0; 0, 1) of so many weights."""
    return weights.numel() / M * 0.5 * math.log(2 * math.pi)


def test_a_chaser_follows_its_leader():
    (model, guide), task = network_pair(loss="chaser", leader_steps=2), regression()
    end = guide.unroll(*task)[-1].loc
    both = task._replace(support_x=torch.cat([task.support_x, task.query_x], 1))
    both = both._replace(support_y=torch.cat([task.support_y, task.query_y], 1))
    ahead, hyperparameters = guide.after(1), guide.prior.hyperparameters()
    leader = end.detach()
    for _ in range(2):  # a step from where the particles are is the first step of a guide that starts there
        ahead.begin = lambda *_, at=leader: type(guide.unroll(*task)[-1])(at, torch.zeros_like(at))
        leader = ahead.unroll(*both, hyperparameters=hyperparameters)[-1].loc.detach()
    expected = 0.5 * (end - leader).square().sum() / M
    terms = objective_of(model, guide).terms(*task)
    torch.testing.assert_close(terms.distortions["leader"] - constant(end), expected, rtol=1e-8, atol=1e-10)
    parameters = [guide.start.loc, guide.prior.loc]
    pairs = (terms.distortion, expected)  # labels say nothing of the weights, and the leader has no gradient
    for one, other in zip(*(torch.autograd.grad(x, parameters, retain_graph=True) for x in pairs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    noise = model.likelihood.log_noise
    outputs = guide.predictor(task.query_x, end)[..., 0].detach()
    labels = -Normal(outputs, noise.exp()).log_prob(task.query_y).sum() / M
    for one, other in zip(*(torch.autograd.grad(x, noise) for x in (terms.distortions["labels"], labels)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_a_leader_that_takes_no_step_costs_nothing():
    (model, guide), task = network_pair(loss="chaser", leader_steps=0), regression()
    terms = objective_of(model, guide).terms(*task)
    torch.testing.assert_close(terms.distortions["leader"], torch.tensor(constant(guide.unroll(*task)[-1].loc)))


def test_a_mixture_of_a_draw_of_the_prior_is_one_model():
    (model, _), task = network_pair(), regression()
    assert model(*task).shape == task.query_y.shape


def test_a_chaser_needs_a_leader():
    with pytest.raises(ValueError, match="leader"):
        ParticleModel(GaussianPrior(torch.zeros(2), torch.ones(2)), LinearPredictor(1.0), loss="chaser")
