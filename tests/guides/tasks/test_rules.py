"""Update rules: each step's own numbers, and the bounds that keep K steps from being worse than none."""

import itertools

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from guides.tasks.families import PosteriorParameters
from guides.tasks.rules import GradientStep, Pull
from models.tasks.priors import MixturePrior

SHAPE = (2, 3, 4)


def pull_of(prior: Normal, θ: PosteriorParameters, beta: float, data=None) -> Pull:
    """Towards the prior alone, unless ``data`` pulls too."""
    loc, log_scale = (t.detach().clone().requires_grad_() for t in θ)
    rate = kl_divergence(Normal(loc, log_scale.exp()), prior).sum()
    gradients = torch.autograd.grad(rate, (loc, log_scale))
    data = torch.zeros(SHAPE) if data is None else data
    return Pull((data, None), gradients, prior.variance.expand(1, 4), beta)


@pytest.mark.parametrize("units", ["posterior", "prior", "weights"])
@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("prior_scale", [0.01, 1.0, 30.0])
def test_without_data_every_step_brings_the_posterior_closer_to_the_prior(units, beta, prior_scale):
    """Whatever step size, β and start: KL(q ‖ p) never rises."""
    prior = Normal(torch.full((4,), 0.5), torch.full((4,), prior_scale))
    rule = GradientStep(1, 4, size=10.0, units=units)
    θ = PosteriorParameters(5 * torch.randn(SHAPE), 2 * torch.randn(SHAPE))
    rates = []
    for _ in range(6):
        rates.append(kl_divergence(Normal(θ.loc, θ.log_scale.exp()), prior))
        θ = rule(0, θ, pull_of(prior, θ, beta))
    for before, after in itertools.pairwise(rates):
        assert (after <= before * (1 + 1e-5) + 1e-5).all()


@pytest.mark.parametrize("units", ["posterior", "prior", "weights"])
@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
def test_no_step_overshoots_the_narrow_components_of_a_mixture(units, beta):
    """Their marginal variance says nothing of how steep the rate is at one of them: KL(q ‖ p) once grew without bound."""
    prior = MixturePrior(torch.randn(6, 4), torch.rand(6, 4) * 0.2 + 0.01, kl="bound").requires_grad_(False)
    ψ, rule = prior.hyperparameters(), GradientStep(1, 4, size=10.0, units=units)
    θ = PosteriorParameters(torch.randn(SHAPE), torch.randn(SHAPE))
    rates = []
    for _ in range(6):
        q = Independent(Normal(θ.loc, θ.log_scale.exp()), 2)
        rates.append(kl_divergence(q, prior.distribution(ψ, SHAPE[1])))
        pull = Pull((torch.zeros(SHAPE), None), prior.kl_gradient(ψ, *θ), prior.variance(ψ), beta, prior.narrowest(ψ))
        θ = rule(0, θ, pull)
    for before, after in itertools.pairwise(rates):
        assert (after <= before * (1 + 1e-5) + 1e-5).all()


def test_inside_the_bounds_it_is_plain_descent():
    prior = Normal(torch.zeros(4), torch.ones(4))
    θ = PosteriorParameters(torch.randn(SHAPE), 0.1 * torch.randn(SHAPE))
    pull = pull_of(prior, θ, 0.5, data=torch.randn(SHAPE))
    rule = GradientStep(1, 4, size=0.01)
    rule.scale_shift.data.fill_(0.2)
    after = rule(0, θ, pull)
    torch.testing.assert_close(after.loc, θ.loc - 0.01 * (pull.data[0] + 0.5 * pull.rate[0]))
    torch.testing.assert_close(after.log_scale, θ.log_scale - 0.01 * 0.5 * pull.rate[1] - 0.2)


def test_every_step_has_a_size_and_a_shift_of_its_own():
    rule = GradientStep(2, 4, size=0.1, learned=True)
    rule.log_size.data.copy_(torch.tensor([0.1, 0.4]).log())
    rule.scale_shift.data.copy_(torch.tensor([[1.0], [2.0]]).expand(2, 4))
    θ = PosteriorParameters(torch.zeros(SHAPE), torch.zeros(SHAPE))
    pull = Pull((torch.ones(SHAPE), None), None, torch.ones(1, 4), 0.0)
    for index, size, shift in ((0, 0.1, 1.0), (1, 0.4, 2.0), (3, 0.1, 0.5)):  # the last is a quarter of the second
        after = rule(index, θ, pull)
        torch.testing.assert_close(after.loc, torch.full(SHAPE, -size))
        torch.testing.assert_close(after.log_scale, torch.full(SHAPE, -shift))


def test_a_sampled_gradient_moves_the_scale_itself():
    rule = GradientStep(1, 4, size=0.1)
    θ = PosteriorParameters(torch.zeros(SHAPE), torch.zeros(SHAPE))
    after = rule(0, θ, Pull((torch.ones(SHAPE), torch.full(SHAPE, 3.0)), None, torch.ones(1, 4), 0.0))
    torch.testing.assert_close(after.log_scale, torch.full(SHAPE, -0.3))


@pytest.mark.parametrize("learned", [True, False])
def test_a_fixed_size_is_no_parameter(learned):
    names = dict(GradientStep(3, 4, learned=learned).named_parameters())
    assert ("log_size" in names) is learned
    with pytest.raises(ValueError, match="positive"):
        GradientStep(3, 4, size=0.0)


@pytest.mark.parametrize("units", ["posterior", "prior", "weights"])
@pytest.mark.parametrize("size", [0.1, 50.0])
@pytest.mark.parametrize("factor", [0.5, 0.25, 0.0])
def test_a_shrunk_step_goes_a_part_of_the_way_however_large_its_size(units, size, factor):
    """Beyond the bounds a smaller size alone would be clamped to the same step."""
    prior = Normal(torch.full((4,), 0.5), torch.full((4,), 0.7))
    rule, θ = GradientStep(2, 4, size=size, units=units), PosteriorParameters(torch.randn(SHAPE), torch.rand(SHAPE))
    rule.scale_shift.data.fill_(0.3)
    pull = pull_of(prior, θ, 2.0, torch.randn(SHAPE))
    whole = rule(1, θ, pull)
    rule.shrink(1, factor)
    for before, full, part in zip(θ, whole, rule(1, θ, pull), strict=True):
        torch.testing.assert_close(part - before, factor * (full - before), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(rule(0, θ, pull), whole, strict=True)), "the other step is as it was"


def test_checkpoints_of_before_take_whole_steps():
    rule, fresh = GradientStep(2, 4), GradientStep(2, 4)
    state = {name: value for name, value in rule.state_dict().items() if name != "share"}
    fresh.shrink(0, 0.5)
    fresh.load_state_dict(state)
    assert fresh.share.tolist() == [1.0, 1.0]
    assert "share" not in state


def test_a_step_in_the_posteriors_units_is_newtons_where_the_posterior_is_exact():
    """A quadratic distortion and a Gaussian prior: one step of size 1 lands on the posterior's mean, from anywhere."""
    precision, target = torch.rand(1, 4) + 0.5, torch.randn(SHAPE)
    prior = Normal(torch.full((4,), 0.5), torch.full((4,), 0.7))
    exact = precision + prior.variance**-1
    θ = PosteriorParameters(torch.randn(SHAPE), (-0.5 * exact.log()).expand(SHAPE))
    after = GradientStep(1, 4, size=1.0, units="posterior")(0, θ, pull_of(prior, θ, 1.0, data=precision * (θ.loc - target)))
    torch.testing.assert_close(after.loc, (precision * target + prior.mean / prior.variance) / exact)
