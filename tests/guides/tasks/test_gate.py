"""The gate to the prior: exact at both ends, learned between."""

import math

import pytest
import torch

from guides.tasks.families import PosteriorParameters
from guides.tasks.gate import PriorGate
from inference.elbo import RateDistortionELBO
from inference.evaluation.predictive import predictive
from models.tasks.priors import GaussianPrior, MixturePrior
from tests.guides.tasks.test_unrolled import DIM, WAY, build, episode


def test_between_the_ends_it_interpolates():
    gate = PriorGate(3, 0.25).double()
    ours = PosteriorParameters(torch.full((2, 4, 3), 8.0).double(), torch.full((2, 4, 3), -4.0).double())
    prior = PosteriorParameters(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
    mixed = gate(ours, prior)
    torch.testing.assert_close(mixed.loc, torch.full((2, 4, 3), 2.0).double())
    torch.testing.assert_close(mixed.log_scale, torch.full((2, 4, 3), -0.25).double())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("predictor", ["cosine", "distance"])
def test_closed_the_posterior_is_the_prior_and_the_rate_nought_exactly(steps, predictor):
    model, guide = build(steps=steps, predictor=predictor, beta=10.0, gate=PriorGate(DIM, 0.5), units="prior")
    guide.stay_at_prior()
    tasks = episode()
    θ = guide.unroll(*tasks)[-1]
    assert bool((θ.loc == model.prior.loc).all())
    assert bool((θ.log_scale == model.prior.log_scale).all())
    found = predictive(model, guide, tasks)
    assert bool((found.rate == 0).all())
    guess = torch.full((3,), tasks.query_y.shape[1] * math.log(WAY), dtype=torch.float64)
    assert (found.distortion(tasks.query_y) > guess).all(), "draws of a prior with a scale, under logits with one"


@pytest.mark.parametrize("predictor", ["cosine", "distance", "linear"])
def test_with_flat_logits_it_costs_what_guessing_costs(predictor):
    model, guide = build(predictor=predictor, beta=10.0, gate=PriorGate(DIM, 0.5), units="prior")
    guide.stay_at_prior()
    model.predictor.flatten()
    tasks = episode()
    loss = RateDistortionELBO(beta=10.0)(model, guide)(*tasks)
    torch.testing.assert_close(
        loss, torch.tensor(tasks.query_y.numel() * math.log(WAY), dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_a_mixture_prior_becomes_one_gaussian_that_the_posterior_can_be():
    """A Gaussian with a mixture's moments is not the mixture: there would be a rate to pay, more than any trained one."""
    model, guide = build(beta=10.0, gate=PriorGate(DIM, 0.5), units="prior", prior=MixturePrior)
    before = model.prior.moments(model.prior.hyperparameters())
    guide.stay_at_prior()
    torch.testing.assert_close(model.prior.moments(model.prior.hyperparameters()), before)
    rate = predictive(model, guide, episode()).rate
    torch.testing.assert_close(rate, torch.zeros_like(rate), atol=1e-9, rtol=0)


def test_open_the_start_is_what_it_is_without_a_gate():
    gate = PriorGate(DIM, 0.5)
    gate.logit.data.fill_(torch.inf)
    torch.manual_seed(0)
    _, gated = build(gate=gate, prior=MixturePrior)
    torch.manual_seed(0)
    _, plain = build(prior=MixturePrior)
    torch.testing.assert_close(gated.unroll(*episode()), plain.unroll(*episode()), rtol=0, atol=0)


def test_closed_to_a_mixture_it_has_the_mixtures_moments():
    gate = PriorGate(DIM, 0.5)
    gate.close()
    model, guide = build(steps=0, gate=gate, prior=MixturePrior)
    θ = guide.unroll(*episode())[0]
    components = model.prior.loc, model.prior.log_scale.exp()
    draws = torch.normal(*(c.expand(20000, -1, -1) for c in components)).flatten(0, 1)
    torch.testing.assert_close(θ.loc[0, 0], draws.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(θ.log_scale[0, 0].exp(), draws.std(0), atol=0.01, rtol=0)


def test_moments_of_a_gaussian_prior_are_its_own():
    prior = GaussianPrior(torch.randn(5), torch.rand(5) + 0.1)
    loc, log_scale = prior.moments(prior.hyperparameters())
    assert bool((loc == prior.loc).all())
    assert bool((log_scale == prior.log_scale).all())


def test_it_learns_to_close_where_no_nat_pays():
    model, guide = build(steps=0, beta=100.0, gate=PriorGate(DIM, 0.5))
    objective = RateDistortionELBO(beta=100.0)(model, guide)
    optimizer = torch.optim.Adam([guide.gate.logit], 0.5)
    for _ in range(15):
        optimizer.zero_grad()
        objective(*episode()).backward()
        optimizer.step()
    assert guide.gate.logit.sigmoid().max() < 0.05


def test_a_guide_without_a_gate_cannot_stay_at_the_prior():
    with pytest.raises(ValueError, match="gate"):
        build()[1].stay_at_prior()
