"""A loss after every step from one unrolling: the mean of separately computed ELBOs, in value and gradient."""

import pyro
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from guides.tasks.every_step import EveryStep, StepsPlate, step_weights
from guides.tasks.gate import PriorGate
from inference.elbo import RateDistortionELBO, RateDistortionModule
from models.tasks.priors import HierarchicalGaussianPrior
from tests.guides.tasks.test_unrolled import DIM, build, episode
from tests.inference.evaluation.test_predictive import hierarchical

BETA = 0.7


def every_step(model, guide, weights) -> RateDistortionModule:
    return RateDistortionModule(
        EveryStep(model, weights), EveryStep(guide.at_every_step(), weights), RateDistortionELBO(beta=BETA)
    )


def gradients(loss, modules) -> dict[str, torch.Tensor]:
    named = {name: p for module in modules for name, p in module.named_parameters()}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(named, found, strict=True)}


@pytest.mark.parametrize("inner_samples", [0, 2])
def test_it_is_the_weighted_mean_of_the_elbos_after_each_step(inner_samples):
    """By hand: θᵏ from an unrolling, log-likelihood at the very draws, KL by torch."""
    model, guide = build(steps=3, beta=BETA, inner_samples=inner_samples, learned=True, gate=PriorGate(DIM, 0.8))
    tasks, weights = episode(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    objective = every_step(model, guide, weights)
    torch.manual_seed(3)
    loss = objective(*tasks)
    torch.manual_seed(3)
    trace = pyro.poutine.trace(objective.guide).get_trace(*tasks)
    drawn = trace.nodes["weights"]["value"]
    torch.manual_seed(3)
    expected = 0.0
    for k, θ in enumerate(guide.unroll(*tasks)):
        assert drawn.shape == (4, 3, 1, *θ.loc.shape[1:])
        noise = ((drawn[k, :, 0] - θ.loc) / θ.log_scale.exp()).detach()
        outputs = model.predictor(tasks.query_x, θ.loc + θ.log_scale.exp() * noise)
        distortion = -Categorical(logits=outputs).log_prob(tasks.query_y).sum()
        prior = Normal(model.prior.loc, model.prior.log_scale.exp())
        expected = expected + weights[k] * (distortion + BETA * kl_divergence(Normal(θ.loc, θ.log_scale.exp()), prior).sum())
    torch.testing.assert_close(loss, expected)
    for (name, found), (_, exact) in zip(
        gradients(loss, (model, guide)).items(), gradients(expected, (model, guide)).items(), strict=True
    ):
        torch.testing.assert_close(found, exact, msg=lambda text, name=name: f"{name}: {text}")


def test_of_a_point_posterior_it_is_the_mean_of_the_objectives_of_its_readings():
    """Without draws: against the objective of each reading by itself, unrolled K + 1 times."""
    model, guide = build(steps=3, family="delta", learned=True)
    tasks, weights = episode(), step_weights(3, 0.5).double()
    readings = [RateDistortionELBO(beta=0.0)(model, guide.after(k))(*tasks) for k in range(4)]
    expected = sum(weight * loss for weight, loss in zip(weights, readings, strict=True))
    objective = RateDistortionModule(
        EveryStep(model, weights), EveryStep(guide.at_every_step(), weights), RateDistortionELBO(beta=0.0)
    )
    loss = objective(*tasks)
    torch.testing.assert_close(loss, expected)
    found, exact = gradients(loss, (model, guide)), gradients(expected, (model, guide))
    torch.testing.assert_close(found, exact)
    assert found["rule.log_size"].abs().min() > 0, "every step has a gradient"


def test_it_unrolls_once():
    model, guide = build(steps=3)
    calls = []
    guide.rule.register_forward_hook(lambda *_: calls.append(1))
    every_step(model, guide, step_weights(3, 0.5).double())(*episode())
    assert len(calls) == 3


def test_hyperparameters_are_drawn_once_and_count_once():
    model, guide = hierarchical()
    guide.steps = 2
    tasks, weights = episode().to(dtype=next(guide.parameters()).dtype), step_weights(2, 0.5).to(next(guide.parameters()))
    objective = every_step(model, guide, weights)
    terms, once = objective.terms(*tasks), RateDistortionELBO(beta=BETA)(model, guide).terms(*tasks)
    assert isinstance(model.prior, HierarchicalGaussianPrior)
    torch.testing.assert_close(terms.rates["prior_loc"], once.rates["prior_loc"])
    trace = pyro.poutine.trace(objective.guide).get_trace(*tasks)
    assert trace.nodes["prior_loc"]["value"].shape[-1:] == trace.nodes["prior_loc"]["value"].shape


def test_weights_of_steps():
    torch.testing.assert_close(step_weights(3, 0.5), torch.tensor([0.2, 0.2, 0.2, 0.4]))
    torch.testing.assert_close(step_weights(0, 0.5), torch.ones(1))
    assert StepsPlate(step_weights(2, 1.0)).size == 3


def test_the_guide_itself_still_runs_under_pyros_svi():
    """Read after its last step alone: one posterior for each task, no plate of steps."""
    model, guide = build(steps=2, gate=PriorGate(DIM, 0.5))
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.TraceMeanField_ELBO())
    tasks = episode()
    losses = [svi.step(*tasks) for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert pyro.poutine.trace(guide).get_trace(*tasks).nodes["weights"]["value"].shape[:2] == (3, 1)
