"""The unrolled guide: equation 9, its symmetries, and that every parameter is trained."""

import itertools

import pyro
import pytest
import torch
from pyro.util import check_model_guide_match
from torch.distributions import Normal, kl_divergence

from data.episodes import Episode, EpisodeSampler, TaskSpec
from guides.tasks.families import PosteriorParameters
from guides.tasks.gradient_networks import EquivariantGradient, ExactGradient, LabelledGradient, MLPGradient
from guides.tasks.hyper import HyperGuide
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart, QueryMeans, SupportMeans
from guides.tasks.synthetic import SyntheticGradientGuide
from guides.tasks.unrolled import Part, UnrolledGuide
from inference.elbo import RateDistortionELBO
from inference.evaluation.predictive import predictive
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import class_means
from models.plates import ordered_like
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
    λ = SupportMeans(DIM) if start is SupportMeans else start.random(DIM, WAY)
    step = {
        "size": options.pop("size", 0.1),
        "learned": options.pop("learned", False),
        "units": options.pop("units", "weights"),
    }
    rule = GradientStep(options.get("steps", 3), DIM, **step)
    guide = SyntheticGradientGuide(ψ, p, λ, gradient or EquivariantGradient(), rule, **options)
    model = EmpiricalBayesModel(ψ, p)
    return model.double(), guide.double()


def test_one_step_is_equation_nine():
    """One exact-gradient step equals one gradient step on −E log p + β KL, by autograd with the same noise."""
    gradient = ExactGradient(CategoricalLikelihood())
    model, guide = build(gradient, steps=1, beta=0.7, inner_samples=5, size=0.005)
    tasks = episode()
    torch.manual_seed(3)
    before, after = guide.unroll(*tasks)
    torch.manual_seed(3)
    noise = ordered_like(before.loc, torch.randn(5, *before.loc.shape, dtype=torch.float64))
    loc, log_scale = (t.detach().clone().requires_grad_() for t in before)
    outputs = model.predictor(tasks.query_x, loc + noise * log_scale.exp())
    distortion = -model.likelihood(outputs).log_prob(tasks.query_y).mean(0).sum()
    rate = kl_divergence(Normal(loc, log_scale.exp()), Normal(model.prior.loc, model.prior.log_scale.exp())).sum()
    expected = torch.autograd.grad(distortion + 0.7 * rate, (loc, log_scale))
    torch.testing.assert_close((before.loc - after.loc) / 0.005, expected[0])
    torch.testing.assert_close((before.log_scale - after.log_scale) / 0.005, expected[1])


def test_whitened_step_is_descent_in_the_priors_units():
    model, guide = build(ExactGradient(CategoricalLikelihood()), steps=1, beta=1.0, units="prior", size=0.01)
    _, plain = build(ExactGradient(CategoricalLikelihood()), steps=1, beta=1.0, units="weights", size=0.01)
    tasks = episode()
    (before, after), (_, reference) = guide.unroll(*tasks), plain.unroll(*tasks)
    variance = (2 * model.prior.log_scale).exp()
    torch.testing.assert_close(after.loc - before.loc, variance * (reference.loc - before.loc))


@pytest.mark.parametrize("units", ["posterior", "prior", "weights"])
@pytest.mark.parametrize("beta", [1.0, 30.0])
def test_kl_pull_never_overshoots(units, beta):
    """Under a narrow prior and a large β, where plain descent diverges, every step brings the posterior closer to the prior."""
    model, guide = build(EquivariantGradient(drawn=False), steps=8, beta=beta, units=units, size=0.5)
    model.prior.log_scale.data.fill_(-4.6)
    for layer in guide.gradient.parameters():
        layer.data.zero_()  # leaves the KL alone
    prior = Normal(model.prior.loc, model.prior.log_scale.exp())
    rates = [kl_divergence(Normal(θ.loc, θ.log_scale.exp()), prior).sum() for θ in guide.unroll(*episode())]
    assert all(after <= before for before, after in itertools.pairwise(rates))
    assert rates[-1] < 0.5 * rates[0]


def test_guide_tells_its_rule_how_narrow_a_mixture_is():
    model, guide = build(prior=MixturePrior, steps=1)
    seen = []
    guide.rule.register_forward_pre_hook(lambda rule, given: seen.append(given[2]))
    guide.unroll(*episode())
    torch.testing.assert_close(seen[0].narrowest[0], (2 * model.prior.log_scale).exp().amin(0))


@pytest.mark.parametrize("family", ["gaussian", "delta"])
@pytest.mark.parametrize("network", [EquivariantGradient, lambda: MLPGradient(WAY)])
def test_tasks_do_not_leak_into_each_other(network, family):
    _, guide = build(network(), steps=3, family=family)
    tasks = episode(4)
    together = guide.unroll(*tasks)[-1]
    for i in range(4):
        alone = guide.unroll(*tasks.tasks(slice(i, i + 1)))[-1]
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
    model, guide = build(network(), prior=prior, start=start, learned=True, inner_samples=inner_samples, steps=2)
    objective = RateDistortionELBO(beta=0.5)(model, guide)
    objective(*episode()).backward()
    for name, parameter in objective.named_parameters():
        unused = name.endswith("predictor.bias") or (inner_samples and name == "guide.rule.scale_shift")
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
    scales = guide.prior.variance(hyper), guide.prior.narrowest(hyper)
    step = lambda m, s: guide.step(PosteriorParameters(m, s), guide.evidence(*tasks[:3]), hyper, scales, 0)  # noqa: E731
    assert torch.autograd.gradcheck(step, (loc, log_scale), atol=1e-4)


def test_rate_of_a_hierarchical_prior_is_averaged_over_its_posterior():
    """E_q(ψ) KL(q(w) ‖ p(w given ψ)), not the KL at one ψ: here against many draws of ψ by hand."""
    model, _ = build(prior=HierarchicalGaussianPrior)
    hyper = HyperGuide(model.prior, scale=0.3)
    hyper.locs[0].data.add_(0.5)  # what q(ψ) learned differs from the centre of p(ψ)
    rule = GradientStep(0, DIM)
    guide = SyntheticGradientGuide(
        model.prior, model.predictor, SupportMeans(DIM), EquivariantGradient(), rule, steps=0, hyper=hyper
    ).double()
    tasks = episode()
    θ = guide.unroll(*tasks)[-1]
    q = Normal(θ.loc, θ.log_scale.exp())
    draws = [Normal(m, s.exp()).sample((4000, 1, 1)) for m, s in zip(hyper.locs, hyper.log_scales, strict=True)]
    expected = kl_divergence(q, Normal(draws[0], draws[1].exp())).sum((-2, -1)).mean(0)
    at_mean = kl_divergence(q, Normal(hyper.locs[0], hyper.locs[1].exp())).sum((-2, -1))
    found = predictive(model, guide, tasks, num_samples=4000).rate
    torch.testing.assert_close(found, expected.detach(), rtol=0.02, atol=0)
    assert (found > 1.1 * at_mean).all()


def test_steps_beyond_the_trained_ones_go_half_as_far_each():
    """All of them together no further than one more: what is good after K steps stays so."""
    _, guide = build(steps=2, beta=0.0)
    guide.rule.log_size.data.copy_(torch.tensor([0.1, 0.3]).log())
    tasks = episode()
    *_, trained, third, fourth = guide.after(4).unroll(*tasks)
    for share, before, after in ((1 / 2, trained, third), (1 / 4, third, fourth)):
        pull = guide.weight_gradient(before.loc, *guide.evidence(*tasks[:3]))
        torch.testing.assert_close(before.loc - after.loc, share * 0.3 * pull)


def test_an_anchor_adds_the_pull_of_the_support():
    _, guide = build(steps=1, beta=0.0, anchor=LabelledGradient())
    tasks = episode()
    before, after = guide.unroll(*tasks)
    _, free = build(steps=1, beta=0.0)
    queries = free.weight_gradient(before.loc, Part(free.predictor.prepare(tasks.query_x), None, guide.gradient))
    support = free.weight_gradient(before.loc, Part(free.predictor.prepare(tasks.support_x), tasks.support_y, guide.anchor))
    assert support.abs().max() > 0
    torch.testing.assert_close(before.loc - after.loc, 0.1 * (queries + support))


def test_without_a_support_an_anchor_holds_nothing():
    _, guide = build(steps=1, start=LearnedStart, anchor=LabelledGradient())
    tasks = episode()
    none = tasks.support_x[:, :0], tasks.support_y[:, :0]
    assert len(guide.evidence(*none, tasks.query_x)) == 1
    assert guide.unroll(*none, tasks.query_x, way=WAY)[-1].loc.isfinite().all()


def test_an_anchor_on_the_support_is_refused():
    with pytest.raises(ValueError, match="already"):
        UnrolledGuide(*parts_of_a_guide(), on="support", anchor=LabelledGradient())


def parts_of_a_guide():
    _, guide = build(steps=1)
    return guide.prior, guide.predictor, guide.start, guide.gradient, guide.rule


def test_each_step_has_its_own_size():
    _, guide = build(steps=2, beta=0.0)
    guide.rule.log_size.data.copy_(torch.tensor([0.1, 0.2]).log())
    tasks = episode()
    _, once, twice = guide.unroll(*tasks)
    pull = guide.weight_gradient(once.loc, *guide.evidence(*tasks[:3]))
    torch.testing.assert_close(once.loc - twice.loc, 0.2 * pull)


def test_reading_after_fewer_steps_shares_everything():
    _, guide = build(steps=3)
    tasks = episode()
    trajectory = guide.unroll(*tasks)
    for k in range(4):
        torch.testing.assert_close(guide.after(k).unroll(*tasks)[-1], trajectory[k])
    assert guide.after(1).rule is guide.rule
    assert guide.steps == 3


def test_the_exact_reference_says_that_it_saw_labels():
    _, guide = build(ExactGradient(CategoricalLikelihood()))
    assert guide.saw_labels
    assert not guide.after(0).saw_labels
    assert not build()[1].saw_labels
