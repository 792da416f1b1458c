"""Meta-learners of regression: what holds of every method, and what each is in hand-written terms."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.episodes import Episode
from data.regression import linear_posterior
from inference.diagnostics.dependence import is_transductive, support_information
from inference.evaluation.posterior import infer
from inference.evaluation.predictive import predictive, trace_guide
from inference.meta.choices import split_choice
from inference.meta.comparison import numbers_adapted
from inference.meta.regression_fits import Setup, meta_train
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_scores import log_density, moments
from inference.meta.regression_tasks import LINEAR_PRIOR, NOISE, Problem
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings

OTHERS = (
    "maml:first_order",
    "ridge:features=bumps",
    "sib:steps=0",
    "sib:gradient=mlp",
    "llama:scored=queries",
    "platipus:noise_only",
    *("bmaml:loss=chaser", "bmaml:loss=distortion", "bmaml:particles=1"),
)
PENALISED = (
    *("mr-maml:test_steps=2", "mr-maml:test_steps=2:penalty=codes", "mr-maml:test_steps=2:penalty=decay:weight=0.1"),
    *("mr-cnp", "mr-cnp:penalty=codes", "mr-cnp:penalty=decay", "cnp:penalty=weights", "cnp:penalty=decay", "maml", "cnp"),
)
POSED = (
    *("maml:steps=2", "cnp:width=8", "cnp:width=8:penalty=decay", "mr-cnp:width=8:codes=6", "mr-cnp:width=8:penalty=codes"),
    *(
        "mr-maml:test_steps=2:penalty=weights",
        "mr-maml:test_steps=2:penalty=codes:codes=6",
        "mr-maml:test_steps=2:penalty=decay",
    ),
)
PLAIN = [name for name in REGRESSION_METHODS if not name.startswith("mr-")]
CASES = [
    (name, problem)
    for name, problem in itertools.product([*PLAIN, *OTHERS], ("linear", "network", "sinusoids", "ambiguous"))
    if problem in REGRESSION_METHODS[split_choice(name)[0]].problems
] + [(name, problem) for problem, names in (("memorisable", PENALISED), ("poses", POSED)) for name in names]
UNTRAINED = {"fine-tuning"}
KNOWN = {("prior", "network")}  # prior and noise are the true ones


def setup_of(problem, tasks=100):
    return Setup(Problem(problem), GuideSettings(), MetaSchedule(tasks, batch=25, learning_rate=3e-3), 5)


def built(name, problem):
    """The first variant of a method, its learned parameters moved a little from where they start."""
    name, given = split_choice(name)
    method, setup = REGRESSION_METHODS[name], setup_of(problem)
    variant = method.variants(VariantSettings(beta=(0.7,), given=given), Problem(problem))[0]
    fit = method.build(setup, variant).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fit.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return fit


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    name, problem = request.param
    return name, problem, built(name, problem), setup_of(problem).draw(4, seed=1)


def numbers(fit, episode):
    """Mean and variance of every query under every draw."""
    labels = predictive(fit.model, fit.guide, fit.embed(episode), num_samples=4, seed=3).labels
    return torch.stack([labels.mean, labels.variance.expand_as(labels.mean)])


def test_tasks_do_not_leak(case):
    *_, fit, tasks = case
    changed = tasks._replace(support_y=tasks.support_y.clone(), query_x=tasks.query_x.clone())
    changed.support_y[0] += 1.0
    changed.query_x[0] -= 0.5
    before, after = numbers(fit, tasks), numbers(fit, changed)
    torch.testing.assert_close(after[:, :, 1:], before[:, :, 1:], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(after[:, :, 0], before[:, :, 0])


def test_labels_of_queries_are_never_read(case):
    *_, fit, tasks = case
    assert torch.equal(numbers(fit, tasks._replace(query_y=tasks.query_y + 1)), numbers(fit, tasks))


def test_the_order_of_support_and_queries_is_irrelevant(case):
    name, _, fit, tasks = case
    back = tasks._replace(
        **{field: getattr(tasks, field).flip(1) for field in ("support_x", "support_y", "query_x", "query_y")}
    )
    if name.startswith("llama"):  # whose draws follow the order of the support, but not their distribution
        for one, other in zip(*(weights_of(fit, episode) for episode in (back, tasks)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
        return
    if "penalty=codes" in name:  # whose draws follow the order too
        for one, other in zip(*(codes_of(fit, episode) for episode in (back, tasks)), strict=True):
            torch.testing.assert_close(one.flip(2), other, rtol=1e-9, atol=1e-12)
        return
    torch.testing.assert_close(numbers(fit, back).flip(-1), numbers(fit, tasks), rtol=1e-6, atol=1e-8)


def codes_of(fit, episode):
    """Means of the codes of supports and queries."""
    trace = trace_guide(fit.guide, fit.embed(episode), 1)
    return [trace.nodes[name]["fn"].mean for name in ("support_codes", "codes")]


def weights_of(fit, episode):
    """Mean and variance of each weight."""
    fn = trace_guide(fit.guide, fit.embed(episode), 1).nodes["weights"]["fn"]
    return fn.mean, fn.variance


def test_predictions_tell_of_the_support_but_for_the_prior(case):
    name, problem, fit, _ = case
    raw = setup_of(problem).draw(20, seed=2)
    changed, tasks = raw._replace(support_y=raw.support_y + 1), fit.embed(raw)
    assert torch.allclose(numbers(fit, raw), numbers(fit, changed)) is (name == "prior")
    if name == "prior":
        told = support_information(fit.model, fit.guide, tasks, exclusive=False, supports=4, num_samples=4)
        assert float(told.abs().max()) < 1e-12
    assert is_transductive(fit.model, fit.guide, tasks) is (name == "sib:gradient=mlp")


def test_everything_learned_gets_a_gradient(case):
    name, problem, fit, tasks = case
    learned = {key: p for key, p in fit.named_parameters() if p.requires_grad}
    assert bool(learned) is (split_choice(name)[0] not in UNTRAINED and (name, problem) not in KNOWN)
    if not learned:
        return
    fit.zero_grad()
    fit(tasks.on_support() if name in ("conjugate", "ridge") else tasks).backward()
    silent = {key for key, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent <= ({"objective.guide.rule.scale_shift"} if name.startswith("sib:steps=0") else set()) | unused(name), silent


def unused(name):
    """What a guide without steps has of them."""
    parts = ("gradient.layers.0.weight", "gradient.layers.0.bias", "gradient.layers.2.weight", "gradient.layers.2.bias")
    return {f"objective.guide.{part}" for part in (*parts, "rule.log_size")} if name == "sib:steps=0" else set()


def test_the_same_seed_trains_the_same_numbers():
    setup = setup_of("linear", 50)
    variant = REGRESSION_METHODS["llama"].variants(VariantSettings(beta=(1.0,)), setup.problem)[0]
    first, second = (REGRESSION_METHODS["llama"].train(setup, variant).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def network(problem):
    """The problem's network as torch has it."""
    if problem == "network":
        return nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    layers = [nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("problem", ["network", "sinusoids"])
@pytest.mark.parametrize("name", ["maml:steps=3:size=0.05", "anil:steps=3:size=0.05", "maml:steps=3:size=0.05:first_order"])
def test_maml_is_a_loop_over_autograd(name, problem):
    """Predictions, loss and meta-gradient of one task; ANIL is the loop over the last layer alone."""
    fit, task = built(name, problem), setup_of(problem).draw(1, seed=3)
    first_order, anil = "first_order" in name, name.startswith("anil")
    with torch.no_grad():  # numbers that were made in single precision
        fit.guide.rule.log_size.fill_(math.log(0.05))
        fit.guide.gradient.likelihood.log_noise.fill_(0.5 * math.log(0.5))
    net, start = network(problem), fit.guide.start.loc.detach()[0].clone()
    if anil:
        start = torch.cat([part.detach().flatten() for layer in fit.space.layers for part in layer.parameters()] + [start])
    shapes = {key: p.shape for key, p in net.named_parameters()}
    leaf = start.requires_grad_()
    parts = leaf.split([shape.numel() for shape in shapes.values()])
    weights = {key: part.view(shape) for part, (key, shape) in zip(parts, shapes.items(), strict=True)}
    adapted = dict(weights)
    chosen = list(weights)[-2:] if anil else list(weights)
    for _ in range(3):
        error = torch.func.functional_call(net, adapted, task.support_x[0])[:, 0] - task.support_y[0]
        inner = [adapted[key] for key in chosen]
        gradient = torch.autograd.grad(error.square().mean(), inner, create_graph=not first_order)
        adapted |= {key: adapted[key] - 0.05 * g for key, g in zip(chosen, gradient, strict=True)}
    expected = torch.func.functional_call(net, adapted, task.query_x[0])[:, 0]
    torch.testing.assert_close(numbers(fit, task)[0, 0, 0], expected, rtol=1e-9, atol=1e-10)

    noise = fit.model.likelihood.log_noise.detach().exp()
    loss = -torch.distributions.Normal(expected, noise).log_prob(task.query_y[0]).sum()
    found = fit(task)
    torch.testing.assert_close(found, loss, rtol=1e-9, atol=1e-10)
    found.backward()
    meta = torch.autograd.grad(loss, leaf)[0]
    own = [fit.guide.start.loc.grad[0]]
    if anil:
        own = [part.grad.flatten() for layer in fit.space.layers for part in layer.parameters()] + own
    torch.testing.assert_close(torch.cat(own), meta, rtol=1e-8, atol=1e-9)


def test_meta_sgd_with_equal_sizes_is_maml():
    maml, sgd = (REGRESSION_METHODS[name] for name in ("maml", "meta-sgd"))
    setup = setup_of("network")
    first, second = (
        method.build(setup, method.variants(VariantSettings(), setup.problem)[0]).double() for method in (maml, sgd)
    )
    tasks = setup.draw(4, seed=5)
    torch.testing.assert_close(numbers(first, tasks), numbers(second, tasks))
    assert second.guide.rule.log_size.shape == (5, 61)
    assert second.guide.rule.log_size.requires_grad
    assert not first.guide.rule.log_size.requires_grad


def test_more_steps_of_the_test_are_as_long_as_the_first():
    setup = setup_of("sinusoids")
    both = []
    for given in ("steps=1:test_steps=4", "steps=4"):
        variant = REGRESSION_METHODS["maml"].variants(VariantSettings(given=given), setup.problem)[0]
        assert variant.steps == 4
        both.append(REGRESSION_METHODS["maml"].build(setup, variant).double())
    torch.testing.assert_close(*(numbers(fit, setup.draw(3, seed=6)) for fit in both))


def test_maml_trains_the_steps_of_training_and_tests_those_of_the_test(monkeypatch):
    module = REGRESSION_METHODS["maml"].train.__globals__
    seen = []
    monkeypatch.setitem(module, "meta_train", lambda fit, setup: seen.append(fit.guide.steps))
    variant = REGRESSION_METHODS["maml"].variants(VariantSettings(given="steps=2:test_steps=7"), Problem("linear"))[0]
    assert REGRESSION_METHODS["maml"].train(setup_of("linear"), variant).guide.steps == 7
    assert seen == [2]


def test_laplace_of_a_linear_model_has_the_exact_covariance():
    fit, setup = built("llama", "linear"), setup_of("linear")
    assert fit.guide.beta == fit.objective.elbo.beta == 0.7
    fit.objective.guide.beta = 1.0
    tasks = setup.draw(4, seed=2)
    with torch.no_grad():
        fit.model.prior.log_scale.copy_(LINEAR_PRIOR[1].log())
        fit.model.likelihood.log_noise.fill_(torch.tensor(NOISE["linear"]).double().log())
    found = moments(trace_guide(fit.guide, tasks, 1).nodes["weights"]["fn"])[1]
    prior = [part.double() for part in LINEAR_PRIOR]
    expected = linear_posterior(tasks.support_x, tasks.support_y, *prior, NOISE["linear"])[1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_noise_of_fine_tuning_is_the_error_of_training_tasks():
    setup, method = setup_of("linear"), REGRESSION_METHODS["fine-tuning"]
    variant = method.variants(VariantSettings(given="steps=20"), setup.problem)[0]
    fit = method.train(setup, variant)
    tasks = fit.embed(setup.draw(200, setup.schedule.seed))
    weights = torch.zeros(200, 3)
    for _ in range(20):
        error = (tasks.support_x @ weights[..., None])[..., 0] - tasks.support_y
        weights = weights - 0.1 * 2 * (tasks.support_x * error[..., None]).mean(1)
    left = (tasks.query_x @ weights[..., None])[..., 0] - tasks.query_y
    torch.testing.assert_close(fit.model.likelihood.log_noise.exp(), left.square().mean().sqrt(), rtol=1e-4, atol=1e-5)


def test_ridge_on_learned_features_is_regression_on_the_last_hidden_layer():
    fit, tasks = built("ridge", "network"), setup_of("network").draw(2, seed=1)
    first = fit.space.layers[0]
    features = torch.cat([F.linear(tasks.support_x, first.weight, first.bias).tanh(), torch.ones(2, 10, 1)], -1)
    torch.testing.assert_close(fit.embed(tasks).support_x, features)
    loc, log_scale = (h.detach() for h in fit.model.prior.hyperparameters())
    noise = fit.model.likelihood.log_noise.detach().exp() * 0.7**0.5
    expected = linear_posterior(features.detach(), tasks.support_y, loc, log_scale.exp(), noise)
    found = moments(trace_guide(fit.guide, fit.embed(tasks), 1).nodes["weights"]["fn"])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_loss_that_is_not_finite_is_one_line():
    fit, setup = built("maml", "linear"), setup_of("linear")
    with torch.no_grad():
        fit.guide.start.loc.fill_(torch.inf)
    with pytest.raises(Exception, match="learning_rate"):
        meta_train(fit, setup)


def test_what_is_scored_of_a_batch_is_the_view_of_it():
    seen = []
    fit, setup = built("cnp", "linear"), setup_of("linear", 25)

    def view(episode: Episode) -> Episode:
        seen.append(episode.query_y.shape)
        return episode.on_support()

    meta_train(fit, setup, view)
    assert seen == [(25, 5)]


def test_learned_sizes_are_those_of_trained_steps():
    variant = REGRESSION_METHODS["meta-sgd"].variants(VariantSettings(given="steps=2:test_steps=4"), Problem("linear"))[0]
    setup = Setup(Problem("linear"), GuideSettings(), MetaSchedule(tasks=4, batch=2), 3)
    guide = REGRESSION_METHODS["meta-sgd"].build(setup, variant).guide
    assert (guide.steps, len(guide.rule.log_size)) == (4, 2)


def test_particles_are_scored_by_their_mixture_and_all_count_as_adapted():
    fit, tasks = built("bmaml", "linear"), setup_of("linear").draw(4, seed=1)
    seen = fit.embed(tasks)
    weights = fit.guide.unroll(*seen)[-1].loc[:, :, 0]
    outputs = torch.einsum("mtd,tqd->mtq", weights, seen.query_x)
    each = torch.distributions.Normal(outputs, fit.model.likelihood.log_noise.exp()).log_prob(seen.query_y)
    found = log_density(fit, seen, predictive(fit.model, fit.guide, seen))
    torch.testing.assert_close(found, each.logsumexp(0) - math.log(5))
    assert numbers_adapted(fit.guide, seen) == 5 * 3
    draws = infer(fit.model, fit.guide, seen).to_arviz(num_samples=20).posterior["weights"]
    assert draws.shape[:2] == (1, 5)
    torch.testing.assert_close(torch.as_tensor(draws.values[0, :, :, :]).double(), weights.detach(), rtol=1e-5, atol=1e-6)
