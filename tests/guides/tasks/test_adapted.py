"""Steps as a rule, beside a loop over autograd, and with an encoder that is random beside one that is not."""

import pytest
import torch
from torch import nn

from data.curves import memorisable_sinusoid_tasks
from guides.tasks.adapted import AdaptedScorer
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.regularised import EncoderGuide
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
from inference.elbo import RateDistortionELBO
from models.likelihoods import GaussianLikelihood
from models.tasks.predictors import PerceptronPredictor
from models.tasks.priors import GaussianPrior
from models.tasks.regularised import EncodedScorer, RegularisedModel

STEPS, SIZE, CODES = 3, 0.05, 4


def steps_guide(**changes):
    predictor = PerceptronPredictor((CODES, 6, 1), torch.tanh)
    torch.manual_seed(1)
    weights = 0.5 * torch.randn(1, predictor.num_weights)
    prior = GaussianPrior(torch.zeros(predictor.num_weights), torch.ones(predictor.num_weights), learned=False)
    options = {"steps": STEPS, "on": Evidence.SUPPORT, "beta": 0.0, "family": Family.DELTA, "reduction": Reduction.MEAN}
    gradient = ExactGradient(GaussianLikelihood(0.5**0.5, learned=False))
    rule = GradientStep(STEPS, predictor.num_weights, size=SIZE, point=True)
    return UnrolledGuide(prior, predictor, LearnedStart(weights), gradient, rule, **(options | changes))


def exact(guide):
    """The guide in double precision, with numbers that were made in single precision made anew."""
    guide.double()
    guide.rule.log_size.copy_(torch.full_like(guide.rule.log_size, SIZE).log())
    guide.gradient.likelihood.log_noise.copy_(torch.tensor(0.5).double().log() / 2)
    return guide


@pytest.fixture
def tasks():
    return memorisable_sinusoid_tasks(3, support=6, queries=5, seed=2).to(dtype=torch.float64)


def maml_loss(encode, start, tasks, noise):
    """MAML on encoded inputs, as a loop over autograd: −Σ log N(y; f(e(x); φ), noise²)."""
    total = 0.0
    for t in range(len(tasks.query_x)):
        weights = start

        def f(x, w):
            first, bias, last, end = w.split([6 * CODES, 6, 6, 1])
            return (torch.tanh(encode(x) @ first.view(6, CODES).T + bias) @ last[:, None])[:, 0] + end

        for _ in range(STEPS):
            error = (f(tasks.support_x[t], weights) - tasks.support_y[t]).square().mean()
            weights = weights - SIZE * torch.autograd.grad(error, weights, create_graph=True)[0]
        predicted = f(tasks.query_x[t], weights)
        total = total - torch.distributions.Normal(predicted, noise).log_prob(tasks.query_y[t]).sum()
    return total


def test_without_noise_and_rate_it_is_mamls_loss_and_gradient(tasks):
    """MR-MAML at β = 0 and σ → 0, of the starts and of the encoder's weights."""
    guide = exact(steps_guide())
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(21, 5), nn.ReLU(), nn.Linear(5, CODES)).double()
    leaves = [p.detach().clone().requires_grad_() for p in encoder.parameters()]
    start = guide.start.loc.detach()[0].clone().requires_grad_()
    likelihood = GaussianLikelihood(torch.tensor(0.3, dtype=torch.float64), learned=False)
    model = RegularisedModel(EncodedScorer(encoder, AdaptedScorer(guide)), likelihood)
    posterior = EncoderGuide(model.start, 1e-14)
    objective = RateDistortionELBO(beta=0.0)(model, posterior)

    def encode(x):
        return torch.relu(x @ leaves[0].T + leaves[1]) @ leaves[2].T + leaves[3]

    expected = maml_loss(encode, start, tasks, torch.tensor(0.3, dtype=torch.float64))
    found = objective(*tasks)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.backward()
    gradients = torch.autograd.grad(expected, [start, *leaves])
    torch.testing.assert_close(guide.start.loc.grad[0], gradients[0], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(posterior.loc.grad, torch.cat([g.flatten() for g in gradients[1:]]), rtol=1e-8, atol=1e-9)


def test_many_draws_of_the_encoder_are_each_adapted_by_themselves(tasks):
    guide = exact(steps_guide())
    scorer = EncodedScorer(nn.Linear(21, CODES), AdaptedScorer(guide))
    model = RegularisedModel(scorer, GaussianLikelihood(1.0, learned=False)).double()
    drawn = model.start.double() + 0.3 * torch.randn(4, 1, 1, len(model.start), dtype=torch.float64)
    together = model.labels(drawn, *tasks[:3], 1).mean
    alone = torch.stack([model.labels(theta[0, 0], *tasks[:3], 1).mean for theta in drawn])
    assert together.shape == (4, 3, 5)
    torch.testing.assert_close(together, alone)


def test_how_many_numbers_are_adapted():
    assert AdaptedScorer(steps_guide()).num_adapted == 6 * CODES + 6 + 7


@pytest.mark.parametrize("changes", [{"family": Family.GAUSSIAN}, {"on": Evidence.QUERIES}])
def test_only_points_on_the_support_are_a_rule(changes):
    with pytest.raises(ValueError, match="a guide of the delta family on the support"):
        AdaptedScorer(steps_guide(**changes))
