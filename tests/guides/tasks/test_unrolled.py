"""The unrolled guide: equation 9, its symmetries, and that every parameter is trained."""

import pyro
import pytest
import torch
from pyro.util import check_model_guide_match
from torch.distributions import Normal, kl_divergence

from data.episodes import Episode, EpisodeSampler, TaskSpec
from guides.tasks.gradient_networks import EquivariantGradient, ExactGradient, MLPGradient
from guides.tasks.hyper import HyperGuide
from guides.tasks.starts import LearnedStart, QueryMeans, SupportMeans
from guides.tasks.unrolled import Posterior, SyntheticGradientGuide
from inference.elbo import RateDistortionELBO
from inference.evaluation.posterior import infer
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import class_means
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import PREDICTORS, CosinePredictor
from models.tasks.priors import GaussianPrior, HierarchicalGaussianPrior, MixturePrior
from tests.conftest import gaussian_bank

WAY, DIM = 4, 10


def episode(tasks: int = 3, way: int = WAY, dtype=torch.float64) -> Episode:
    return EpisodeSampler(gaussian_bank(), TaskSpec(way=way, shot=2, queries=6)).sample(tasks, seed=1).to(dtype=dtype)


def build(gradient=None, predictor="cosine", prior=GaussianPrior, start=SupportMeans, **options):
    bank = gaussian_bank()
    means = class_means(bank.items, bank.labels)
    p, ψ = PREDICTORS[predictor](), prior.from_class_means(means)
    args = (DIM,) if start is SupportMeans else (DIM, WAY)
    gradient = gradient or EquivariantGradient()
    guide = SyntheticGradientGuide(ψ, p, start(*args), gradient, num_features=DIM, **{"inner_lr": 0.1, **options})
    model = EmpiricalBayesModel(ψ, p)
    return model.double(), guide.double()


def test_one_step_is_equation_nine():
    """One exact-gradient step equals one gradient step on −E log p + β KL, by autograd with the same noise."""
    gradient = ExactGradient(CategoricalLikelihood())
    model, guide = build(gradient, steps=1, beta=0.7, inner_samples=5, inner_lr=0.05)
    tasks = episode()
    torch.manual_seed(3)
    before, after = guide.unroll(*tasks)
    torch.manual_seed(3)
    noise = torch.randn(5, *before.loc.shape, dtype=torch.float64)
    loc, log_scale = (t.detach().clone().requires_grad_() for t in before)
    outputs = model.predictor(tasks.query_x, loc + noise * log_scale.exp())
    distortion = -model.likelihood(outputs).log_prob(tasks.query_y).mean(0).sum()
    rate = kl_divergence(Normal(loc, log_scale.exp()), Normal(model.prior.loc, model.prior.log_scale.exp())).sum()
    expected = torch.autograd.grad(distortion + 0.7 * rate, (loc, log_scale))
    torch.testing.assert_close((before.loc - after.loc) / 0.05, expected[0])
    torch.testing.assert_close((before.log_scale - after.log_scale) / 0.05, expected[1])


def test_whitened_step_is_descent_in_the_priors_units():
    model, guide = build(ExactGradient(CategoricalLikelihood()), steps=1, beta=1.0, whiten=True, inner_lr=0.01)
    _, plain = build(ExactGradient(CategoricalLikelihood()), steps=1, beta=1.0, whiten=False, inner_lr=0.01)
    tasks = episode()
    (before, after), (_, reference) = guide.unroll(*tasks), plain.unroll(*tasks)
    variance = (2 * model.prior.log_scale).exp()
    torch.testing.assert_close(after.loc - before.loc, variance * (reference.loc - before.loc))


def test_kl_pull_is_stable_under_a_narrow_prior_only_when_whitened():
    """At β = 1 and σ_ψ = 0.01 the plain step diverges; in the prior's units it contracts towards the prior's mean."""
    for whiten, contracts in ((True, True), (False, False)):
        model, guide = build(steps=8, beta=1.0, whiten=whiten, inner_lr=0.1)
        model.prior.log_scale.data.fill_(-4.6)
        for layer in guide.gradient.parameters():
            layer.data.zero_()  # leaves the KL alone
        trajectory = guide.unroll(*episode())
        distance = [float((θ.loc - model.prior.loc).detach().norm()) for θ in trajectory]
        assert (distance[-1] < distance[0]) is contracts


@pytest.mark.parametrize("family", ["gaussian", "delta"])
@pytest.mark.parametrize("network", [EquivariantGradient, lambda: MLPGradient(WAY)])
def test_tasks_do_not_leak_into_each_other(network, family):
    _, guide = build(network(), steps=3, family=family)
    tasks = episode(4)
    together = guide.unroll(*tasks)[-1]
    for i in range(4):
        alone = guide.unroll(*(t[i : i + 1] for t in tasks))[-1]
        for part, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(part[0], whole[i])


@pytest.mark.parametrize("network", [EquivariantGradient, lambda: MLPGradient(WAY)])
def test_order_of_queries_does_not_matter(network):
    _, guide = build(network(), steps=3)
    tasks = episode()
    shuffled = tasks._replace(query_x=tasks.query_x[:, torch.randperm(tasks.query_x.shape[1])], query_y=None)
    torch.testing.assert_close(guide.unroll(*shuffled)[-1], guide.unroll(*tasks)[-1])


def test_equivariant_network_ignores_the_order_of_classes():
    _, guide = build(EquivariantGradient(), steps=3)
    tasks, order = episode(), torch.tensor([2, 0, 3, 1])
    renamed = tasks._replace(support_y=order.argsort()[tasks.support_y], query_y=None)
    for moved, original in zip(guide.unroll(*renamed)[-1], guide.unroll(*tasks)[-1], strict=True):
        torch.testing.assert_close(moved, original[:, order])


def test_equivariant_network_takes_any_way_and_the_mlp_says_why_not():
    _, guide = build(EquivariantGradient())
    assert guide.unroll(*episode(way=7))[-1].loc.shape == (3, 7, DIM)
    _, guide = build(MLPGradient(WAY))
    with pytest.raises(ValueError, match="equivariant"):
        guide.unroll(*episode(way=7))


def test_no_step_and_delta_is_the_nearest_class_mean_cosine_classifier():
    _, guide = build(steps=0, family="delta")
    tasks = episode()
    logits = CosinePredictor()(tasks.query_x, guide.unroll(*tasks)[-1].loc)
    means = class_means(tasks.support_x, tasks.support_y)
    cosine = torch.cosine_similarity(tasks.query_x[:, :, None], means[:, None], dim=-1)
    torch.testing.assert_close(logits, (10 * cosine).to(logits))


def test_closed_form_and_generic_gradient_agree_through_all_steps():
    torch.manual_seed(0)
    _, closed = build(steps=3, closed_form=True)
    torch.manual_seed(0)
    _, generic = build(steps=3, closed_form=False)
    torch.testing.assert_close(closed.unroll(*episode())[-1], generic.unroll(*episode())[-1])


@pytest.mark.parametrize("prior", [GaussianPrior, MixturePrior])
@pytest.mark.parametrize("start", [SupportMeans, LearnedStart, QueryMeans])
@pytest.mark.parametrize("network", [EquivariantGradient, lambda: MLPGradient(WAY)])
@pytest.mark.parametrize("inner_samples", [0, 2])
def test_every_parameter_receives_a_gradient(prior, start, network, inner_samples):
    model, guide = build(network(), prior=prior, start=start, learn_inner_lr=True, inner_samples=inner_samples, steps=2)
    objective = RateDistortionELBO(beta=0.5)(model, guide)
    objective(*episode()).backward()
    for name, parameter in objective.named_parameters():
        unused = name.endswith("predictor.bias") or (inner_samples and name == "guide.scale_shift")
        if not unused:  # the cosine bias shifts all logits alike; with samples log σ has its own gradient
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_model_and_guide_match():
    model, guide = build()
    tasks = episode()
    guide_trace = pyro.poutine.trace(guide).get_trace(*tasks)
    replayed = pyro.poutine.replay(model, guide_trace)
    model_trace = pyro.poutine.trace(replayed).get_trace(*tasks)
    check_model_guide_match(model_trace, guide_trace, max_plate_nesting=2)


def test_exact_gradient_needs_labels():
    _, guide = build(ExactGradient(CategoricalLikelihood()))
    with pytest.raises(ValueError, match="labels"):
        guide.unroll(*episode().unlabelled())


def test_guide_never_reads_query_labels():
    _, guide = build()
    tasks = episode()
    wrong = tasks._replace(query_y=(tasks.query_y + 1) % WAY)
    torch.testing.assert_close(guide.unroll(*wrong)[-1], guide.unroll(*tasks)[-1], rtol=0, atol=0)


def test_unroll_is_differentiable_to_the_start():
    _, guide = build(steps=2)
    tasks = episode()
    loc = torch.randn(3, WAY, DIM, dtype=torch.float64, requires_grad=True)
    log_scale = torch.full_like(loc, -2.0).requires_grad_()
    hyper = guide.prior.hyperparameters()
    step = lambda m, s: guide.step(Posterior(m, s), tasks.query_x, None, hyper, 0)  # noqa: E731
    assert torch.autograd.gradcheck(step, (loc, log_scale), atol=1e-4)


def test_rate_of_a_hierarchical_prior_is_against_the_mean_of_its_posterior():
    model, _ = build(prior=HierarchicalGaussianPrior)
    hyper = HyperGuide(model.prior)
    hyper.locs[0].data.add_(3.0)  # what q(ψ) learned differs from the centre of p(ψ)
    guide = SyntheticGradientGuide(
        model.prior, model.predictor, SupportMeans(DIM), EquivariantGradient(), num_features=DIM, hyper=hyper
    ).double()
    posterior = infer(model, guide, episode())
    q = Normal(posterior.theta.loc, posterior.theta.log_scale.exp())
    expected = kl_divergence(q, Normal(hyper.locs[0], hyper.locs[1].exp())).sum((-2, -1))
    torch.testing.assert_close(posterior.rate(), expected.detach())
