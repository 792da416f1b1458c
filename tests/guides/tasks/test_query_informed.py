"""PLATIPUS: its terms and gradients against loops over tasks, its limits, and that predictions never see query labels."""

import math

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from pyro.util import check_model_guide_match

from data.episodes import Episode
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.query_informed import QueryInformedGuide
from guides.tasks.starts import LearnedStart
from inference.elbo import RateDistortionELBO
from inference.evaluation.evaluate import evaluate
from inference.evaluation.predictive import predictive, trace_guide
from inference.meta.platipus import build_platipus
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from models.networks.functional import FunctionalNetwork
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import LinearPredictor, PerceptronPredictor
from tests.guides.tasks.test_maml import build as build_maml
from tests.guides.tasks.test_maml import convolutional, images

TASKS, SUPPORT, QUERIES = 3, 4, 5
ALPHA, GAMMA_P, GAMMA_Q = 0.11, 0.2, 0.3
NOISE = 0.7

pytestmark = pytest.mark.usefixtures("float64")


def curves() -> Episode:
    x, query_x = torch.randn(TASKS, SUPPORT, 1), torch.randn(TASKS, QUERIES, 1)
    return Episode(x, torch.randn(TASKS, SUPPORT), query_x, torch.randn(TASKS, QUERIES), 1)


def build(steps=2, **options):
    """A perceptron with seven weights, whose scales and step sizes all differ."""
    predictor = PerceptronPredictor((1, 2, 1))
    given = {"steps": steps, "size": ALPHA, "prior_size": GAMMA_P, "scale": 0.2, "floor": 0.05} | options
    model, guide = build_platipus(
        predictor,
        LearnedStart(torch.randn(1, predictor.num_weights)),
        ExactGradient(GaussianLikelihood(NOISE, learned=False)),
        GaussianLikelihood(NOISE),
        **given,
    )
    with torch.no_grad():
        for gaussian in (part for part in (guide.prior, guide.posterior) if part is not None):
            gaussian.log_scale.add_(0.3 * torch.randn(predictor.num_weights))
        if guide.posterior is not None:
            guide.posterior.descent.rule.log_size.fill_(math.log(GAMMA_Q))
    return model, guide


def outputs(weights, x):
    """The perceptron of one weight vector: ``[n, 1]`` to ``[n]``."""
    return (torch.tanh(x @ weights[:2, None].T + weights[2:4]) @ weights[4:6, None] + weights[6])[:, 0]


def nats(weights, x, y):
    return -torch.distributions.Normal(outputs(weights, x), NOISE).log_prob(y)


def stepped(weights, x, y, size):
    """One step on the mean loss, differentiable."""
    (gradient,) = torch.autograd.grad(nats(weights, x, y).mean(), weights, create_graph=True)
    return weights - size * gradient


def by_hand(guide, tasks, drawn, steps=2):
    """Distortion and rate of each task, one after another, at weights that are given as noise, ``[tasks, P]``."""
    start = guide.start.loc[0]
    sigma, v = (((2 * part.log_scale).exp() + 0.05**2).sqrt() for part in (guide.prior, guide.posterior))
    gamma_p, gamma_q = (part.descent.rule.log_size.exp() for part in (guide.prior, guide.posterior))
    found = []
    for x, y, query_x, query_y, noise in zip(*tasks[:4], drawn, strict=True):
        p = stepped(start, x, y, gamma_p)
        q = stepped(start, query_x, query_y, gamma_q)
        weights = q + v * noise
        for _ in range(steps):
            weights = stepped(weights, x, y, ALPHA)
        rate = (sigma / v).log() + (v.square() + (q - p).square()) / (2 * sigma.square()) - 0.5
        found.append(torch.stack([nats(weights, query_x, query_y).sum(), rate.sum()]))
    return torch.stack(found)


def noise_of(guide, tasks, seed):
    """What the guide draws under a seed, in units of its scale."""
    pyro.set_rng_seed(seed)
    site = poutine.trace(guide).get_trace(*tasks).nodes["weights"]
    return ((site["value"] - site["fn"].mean) / site["fn"].base_dist.scale).detach()[:, 0, 0]


def test_terms_and_meta_gradients_are_those_of_a_loop():
    (model, guide), tasks = build(), curves()
    drawn = noise_of(guide, tasks, 1)
    pyro.set_rng_seed(1)
    objective = RateDistortionELBO(beta=0.4)(model, guide)
    terms = objective.terms(*tasks)
    distortion, rate = by_hand(guide, tasks, drawn).sum(0)
    torch.testing.assert_close(terms.distortion, distortion, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.rate, rate, rtol=1e-10, atol=1e-10)
    learned = {name: p for name, p in objective.named_parameters() if p.requires_grad and "log_noise" not in name}
    assert len(learned) == 5, "mu, both scales and both step sizes"
    found, expected = (torch.autograd.grad(loss, learned.values()) for loss in (terms.loss, distortion + 0.4 * rate))
    for one, other in zip(found, expected, strict=True):
        assert float(one.abs().max()) > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_first_order_has_the_same_loss_and_other_gradients():
    tasks, found = curves(), []
    for first_order in (False, True):
        torch.manual_seed(0)
        model, guide = build(first_order=first_order)
        pyro.set_rng_seed(1)
        loss = RateDistortionELBO()(model, guide)(*tasks)
        found.append((loss.detach(), torch.autograd.grad(loss, guide.start.loc)[0]))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


def test_what_tells_nothing_new_has_no_rate():
    """The same numbers on the same data: q is p."""
    (model, guide), tasks = build(), curves().on_support()
    objective = RateDistortionELBO()(model, guide)
    assert float(objective.terms(*tasks).rate.detach()) > 0.1
    with torch.no_grad():
        guide.posterior.log_scale.copy_(guide.prior.log_scale)
        guide.posterior.descent.rule.log_size.copy_(guide.prior.descent.rule.log_size)
    torch.testing.assert_close(objective.terms(*tasks).rate, torch.tensor(0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise_only", [False, True])
def test_without_scales_first_steps_and_rate_it_is_maml(noise_only):
    tasks, network = images(), convolutional()
    expected = RateDistortionELBO(beta=0.0)(*build_maml(network))
    functional = FunctionalNetwork(network)
    start, likelihood = LearnedStart.from_network(functional), CategoricalLikelihood()
    predictor = NetworkPredictor(functional, 3)
    small = {"scale": 1e-13, "floor": 0.0, "prior_size": 1e-13, "noise_only": noise_only}
    pair = build_platipus(predictor, start, ExactGradient(likelihood), likelihood, steps=3, size=0.3, **small)
    objective = RateDistortionELBO(beta=0.0)(*pair)
    losses = [one(*tasks) for one in (expected, objective)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=1e-10)
    gradients = (
        torch.autograd.grad(loss, one.guide.start.loc)[0] for loss, one in zip(losses, (expected, objective), strict=True)
    )
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_predictions_are_of_the_prior_and_never_of_query_labels():
    (model, guide), tasks = build(), curves()
    other = tasks._replace(query_y=tasks.query_y + 3)
    predicted = predictive(model, guide, tasks, num_samples=6, seed=2)
    assert predicted.rate is None
    assert predicted.num_draws == 6
    for changed in (other, tasks.unlabelled()):
        assert torch.equal(predictive(model, guide, changed, num_samples=6, seed=2).labels.mean, predicted.labels.mean)
    guide.eval()
    given = poutine.trace(guide).get_trace(*tasks).nodes["weights"]["fn"].mean
    assert torch.equal(poutine.trace(guide).get_trace(*other).nodes["weights"]["fn"].mean, given), "labels given and not read"
    fn = trace_guide(guide, other, 1).nodes["weights"]["fn"]
    for task, (x, y) in enumerate(zip(tasks.support_x, tasks.support_y, strict=True)):
        loc = stepped(guide.start.loc[0], x, y, GAMMA_P)
        torch.testing.assert_close(fn.mean[0, task, 0, 0], loc)
    scale = ((2 * guide.prior.log_scale).exp() + 0.05**2).sqrt()
    torch.testing.assert_close(fn.stddev[0, :, 0, 0], scale.expand(TASKS, -1))
    guide.train()
    seen = poutine.trace(guide).get_trace(*tasks).nodes["weights"]["fn"].mean
    assert not torch.allclose(poutine.trace(guide).get_trace(*other).nodes["weights"]["fn"].mean, seen)


def test_a_draw_is_adapted_to_the_support_and_then_predicts():
    (model, guide), tasks = build(), curves()
    trace = trace_guide(guide, tasks, 2)
    drawn = trace.nodes["weights"]["value"][:, :, 0, 0]
    labels = poutine.trace(poutine.replay(model, trace=trace))
    with pyro.plate("draws", 2, dim=-3):
        mean = labels.get_trace(*tasks.unlabelled()).nodes["labels"]["fn"].mean
    for draw in range(2):
        for task, (x, y, query_x) in enumerate(zip(*tasks[:3], strict=True)):
            weights = drawn[draw, task].clone().requires_grad_()
            for _ in range(2):
                weights = stepped(weights, x, y, ALPHA)
            torch.testing.assert_close(mean[draw, task], outputs(weights, query_x))


def test_with_noise_alone_the_prior_is_the_same_for_all_tasks_and_known():
    (model, guide), tasks = build(noise_only=True), curves()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "prior.descent.start.loc",
        "likelihood.log_noise",
    }
    for training in (True, False):
        fn = poutine.trace(guide.train(training)).get_trace(*tasks).nodes["weights"]["fn"]
        torch.testing.assert_close(fn.mean[:, 0], guide.start.loc.expand(TASKS, 1, -1))
        torch.testing.assert_close(fn.stddev[:, 0, 0], guide.prior.scale.expand(TASKS, -1))
    torch.testing.assert_close(RateDistortionELBO()(model, guide).terms(*tasks).rate, torch.tensor(0.0))


def test_scales_have_a_floor_below_which_they_still_learn():
    _, guide = build(floor=0.05)
    with torch.no_grad():
        guide.prior.log_scale.fill_(-50.0)
    torch.testing.assert_close(guide.prior.scale, torch.full((7,), 0.05))
    with torch.no_grad():
        guide.prior.log_scale.fill_(math.log(0.12))
    torch.testing.assert_close(guide.prior.scale, torch.full((7,), 0.13))
    assert (torch.autograd.grad(guide.prior.scale.sum(), guide.prior.log_scale)[0] > 0).all()


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_under_pyros_own_svi_its_loss_is_that_of_ours(elbo):
    """Warnings are errors here. One of Pyro's objectives has our analytic rate, the other log q − log p of the same draw."""
    (model, guide), tasks = build(), curves()
    pyro.set_rng_seed(3)
    guide_trace = poutine.trace(guide).get_trace(*tasks)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*tasks)
    check_model_guide_match(model_trace, guide_trace)
    pyro.set_rng_seed(3)
    expected = RateDistortionELBO()(model, guide)(*tasks)
    if elbo is Trace_ELBO:
        expected = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
    pyro.set_rng_seed(3)
    assert elbo().loss(model, guide, *tasks) == pytest.approx(float(expected.detach()), rel=1e-10)
    before = guide.start.loc.detach().clone()
    assert math.isfinite(SVI(model, guide, Adam({"lr": 0.01}), elbo()).step(*tasks))
    assert not torch.equal(guide.start.loc, before)


def test_particles_side_by_side_share_one_prior_and_one_posterior():
    (model, guide), tasks = build(), curves()
    elbos = RateDistortionELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2), RateDistortionELBO()
    rates = [elbo(model, guide).terms(*tasks).rate.detach() for elbo in elbos]
    torch.testing.assert_close(*rates, rtol=1e-10, atol=0)


def test_linear_heads_take_draws_and_are_scored():
    way = 3
    support_y = torch.arange(way).repeat(2).expand(TASKS, -1)
    tasks = Episode(torch.randn(TASKS, 6, 4), support_y, torch.randn(TASKS, 5, 4), torch.randint(way, (TASKS, 5)), way)
    gradient, start = ExactGradient(CategoricalLikelihood()), LearnedStart(torch.randn(way, 4))
    small = {"steps": 2, "size": 0.5, "prior_size": 0.5, "scale": 0.3}
    model, guide = build_platipus(LinearPredictor(2.0), start, gradient, CategoricalLikelihood(), **small)
    assert isinstance(guide, QueryInformedGuide)
    scores = evaluate(model, guide, tasks, tasks=TASKS, seed=0)
    assert scores.rate is None
    assert 0 < scores.nll < 10
    drawn = trace_guide(guide, tasks, 1).nodes["weights"]["value"][0, :, 0]  # [tasks, way, 4]
    logits = [2 * x @ w.T for x, w in zip(tasks.support_x, drawn, strict=True)]
    for task, w in enumerate(drawn):
        adapted = w.clone()
        for _ in range(2):
            off = (2 * tasks.support_x[task] @ adapted.T).softmax(-1) - F.one_hot(support_y[task], way)
            adapted = adapted - 0.5 * 2 * off.T @ tasks.support_x[task] / 6
        found = model.adapt(drawn, *tasks[:3])[task]
        torch.testing.assert_close(found, adapted)
        assert not torch.allclose(2 * tasks.support_x[task] @ found.T, logits[task])
