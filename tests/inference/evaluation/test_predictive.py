"""The predictive distribution, read from traces: exact where it is known, and the same whatever tasks share a batch."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from data.episodes import EpisodeSampler, TaskSpec
from data.regression import linear_posterior
from data.seeding import shared_draws
from guides.tasks.ridge import RidgePosteriorGuide
from inference.evaluation.predictive import (
    CommonNoise,
    Predictive,
    divergence,
    place_of,
    predictive,
    sharing_steps,
    trace_guide,
)
from inference.meta.regression_guides import build_regression
from inference.meta.regression_tasks import LINEAR_PRIOR, regression_tasks
from models.tasks.priors import GaussianPrior, HierarchicalGaussianPrior
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import WAY, build, episode


def linear(count=6):
    """Linear tasks and the program at their true prior and noise."""
    objective = build_regression("linear", 1.0)
    objective.model.prior.loc.data = LINEAR_PRIOR[0].double()
    objective.model.prior.log_scale.data = LINEAR_PRIOR[1].double().log()
    objective.model.likelihood.log_noise.data = torch.tensor(0.5, dtype=torch.float64).log()
    return objective, regression_tasks("linear", count, queries=5, seed=1)


def test_predictions_of_linear_regression_are_exact():
    """Mean and variance over draws are those of the posterior in closed form, and so is the log predictive density."""
    objective, tasks = linear()
    predicted = predictive(objective.model, objective.guide, tasks, num_samples=20_000)
    mean, covariance = linear_posterior(tasks.support_x, tasks.support_y, *(p.double() for p in LINEAR_PRIOR), 0.5)
    expected = (tasks.query_x @ mean[..., None])[..., 0]
    variance = ((tasks.query_x @ covariance) * tasks.query_x).sum(-1)
    torch.testing.assert_close(predicted.labels.mean.mean(0), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(predicted.labels.mean.var(0), variance, rtol=0.05, atol=0)
    density = dist.Normal(expected, (variance + 0.25).sqrt()).log_prob(tasks.query_y)
    torch.testing.assert_close(predicted.log_predictive(tasks.query_y), density, atol=0.05, rtol=0)


def test_gaussian_draws_have_the_posteriors_mean_and_standard_deviation():
    _, guide = build()
    tasks = episode()
    θ = guide.unroll(*tasks.unlabelled())[-1]
    drawn = predictive(LinearReadOut(), guide, tasks, num_samples=4000).labels.mean  # the weights themselves
    torch.testing.assert_close(drawn.mean(0), θ.loc.sum(-1), atol=1e-9, rtol=0)  # antithetic: exactly the mean
    torch.testing.assert_close(drawn.var(0), θ.log_scale.exp().square().sum(-1), rtol=0.15, atol=0)


class LinearReadOut(PyroModule):
    """Labels whose means are the sums of the rows of the weights."""

    def forward(self, support_x, support_y, query_x, query_y=None, way=None):
        with pyro.plate("tasks", len(query_x), dim=-2):
            weights = pyro.sample("weights", dist.Normal(torch.zeros(way, 10), 1.0).to_event(2))
            with pyro.plate("queries", way, dim=-1):
                pyro.sample("labels", dist.Normal(weights.squeeze(-3).sum(-1), 1.0), obs=query_y)


@pytest.mark.parametrize("prior", [None, HierarchicalGaussianPrior])
def test_results_do_not_depend_on_which_tasks_share_a_batch(prior):
    model, guide = build() if prior is None else hierarchical()
    tasks = episode(5)
    together = predictive(model, guide, tasks)
    for i in range(5):
        alone = predictive(model, guide, tasks.tasks(slice(i, i + 1)))
        torch.testing.assert_close(alone.probabilities()[0], together.probabilities()[i])
        torch.testing.assert_close(alone.rate[0], together.rate[i])


@pytest.mark.parametrize("inner_samples", [0, 2])
@pytest.mark.parametrize("prior", [None, HierarchicalGaussianPrior])
def test_tasks_of_a_batch_take_draws_of_their_own(prior, inner_samples):
    """Those of their place, whatever number of tasks fills the batch."""
    model, guide = build(inner_samples=inner_samples) if prior is None else hierarchical()
    one = episode(1)
    same = one.tasks([0] * 5)
    own, shared = (predictive(model, guide, same, batch=batch).probabilities() for batch in (5, None))
    torch.testing.assert_close(shared, shared[:1].expand_as(shared))
    assert not any(torch.allclose(own[i], own[0]) for i in range(1, 5))
    torch.testing.assert_close(predictive(model, guide, same.tasks(slice(2)), batch=5).probabilities(), own[:2])


def hierarchical():
    from guides.tasks.gradient_networks import EquivariantGradient
    from guides.tasks.hyper import HyperGuide
    from guides.tasks.rules import GradientStep
    from guides.tasks.starts import SupportMeans
    from guides.tasks.synthetic import SyntheticGradientGuide

    model, _ = build(prior=HierarchicalGaussianPrior)
    model.num_tasks = 1000
    parts = SupportMeans(10), EquivariantGradient(), GradientStep(2, 10)
    guide = SyntheticGradientGuide(model.prior, model.predictor, *parts, steps=2, hyper=HyperGuide(model.prior), num_tasks=1000)
    return model, guide.double()


@pytest.mark.parametrize("inner_samples", [0, 3])
def test_renaming_classes_renames_predictions_and_nothing_else(inner_samples):
    model, guide = build(inner_samples=inner_samples)
    tasks, order = episode(), torch.tensor([2, 0, 3, 1])
    renamed = tasks._replace(support_y=order.argsort()[tasks.support_y], query_y=None)
    torch.testing.assert_close(
        predictive(model, guide, renamed).probabilities(), predictive(model, guide, tasks).probabilities()[..., order]
    )


def test_rows_of_one_task_have_noise_of_their_own():
    """Shared noise would make classes rise and fall together, and predictions too sure."""
    _, guide = build()
    drawn = predictive(LinearReadOut(), guide, episode(1), num_samples=2000).labels.mean[:, 0]
    correlation = torch.corrcoef(drawn.T) - torch.eye(WAY)
    assert correlation.abs().max() < 0.1


def test_rate_is_the_closed_form_and_none_for_points():
    model, guide = build()
    tasks = episode()
    θ = guide.unroll(*tasks.unlabelled())[-1]
    q, p = dist.Normal(θ.loc, θ.log_scale.exp()), dist.Normal(model.prior.loc, model.prior.log_scale.exp())
    expected = torch.distributions.kl_divergence(q, p).sum((-2, -1)).detach()
    torch.testing.assert_close(predictive(model, guide, tasks).rate, expected)
    point = predictive(*build(family="delta"), tasks)
    assert point.rate is None
    assert point.num_draws == 1, "draws of a point would all be the same"


def test_rate_without_a_closed_form_is_estimated_from_the_draws():
    """KL(N(0.3, 0.5²) ‖ Student t) has none; by quadrature."""
    q, p = dist.Normal(torch.tensor(0.3, dtype=torch.float64), 0.5), dist.StudentT(torch.tensor(4.0, dtype=torch.float64))
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    expected = torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid)
    torch.testing.assert_close(divergence(q, p, q.sample((100_000,))).mean(), expected, atol=0.01, rtol=0)
    torch.testing.assert_close(divergence(q, q, q.sample()), torch.zeros((), dtype=torch.float64))


def test_a_new_task_is_not_tempered_by_the_size_of_the_training_set():
    """num_tasks scales a batch in training; in evaluation a task counts once."""
    model, guide = hierarchical()
    tasks = episode(3)
    scale = {}
    for training in (True, False):
        model.train(training), guide.train(training)
        trace = pyro.poutine.trace(model).get_trace(*tasks)
        scale[training] = trace.nodes["labels"]["scale"]
    assert float(scale[True]) == pytest.approx(1000 / 3)
    assert float(scale[False]) == 1.0


def test_query_labels_are_hidden_from_guides_that_do_not_ask():
    model, guide = build()
    tasks = episode()
    wrong = tasks._replace(query_y=(tasks.query_y + 1) % WAY)
    torch.testing.assert_close(
        predictive(model, guide, wrong).probabilities(), predictive(model, guide, tasks).probabilities(), rtol=0, atol=0
    )


def test_other_queries_than_those_adapted_on():
    model, guide = build()
    tasks = episode()
    other = torch.randn(3, 2, 10, dtype=torch.float64)
    predicted = predictive(model, guide, tasks, query_x=other).probabilities()
    assert predicted.shape == (3, 2, WAY)
    same = predictive(model, guide, tasks, query_x=tasks.query_x[:, :2]).probabilities()
    torch.testing.assert_close(same, predictive(model, guide, tasks).probabilities()[:, :2])


def test_modes_and_random_state_are_left_as_they_were():
    model, guide = build()
    model.train(), guide.eval()
    state = torch.get_rng_state()
    predictive(model, guide, episode())
    assert model.training
    assert not guide.training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("inner_samples", [0, 2])
def test_equal_seeds_give_equal_predictions_whatever_was_drawn_before(inner_samples):
    """Draws inside the guide's steps and of other families than independent Gaussians too, and they do not depend on the
    batch either: otherwise a resumed run would choose another checkpoint than an unbroken one."""
    model, guide = build(inner_samples=inner_samples)
    tasks = episode(4)
    first = predictive(model, guide, tasks).probabilities()
    torch.manual_seed(17)
    torch.testing.assert_close(predictive(model, guide, tasks).probabilities(), first, rtol=0, atol=0)
    alone = predictive(model, guide, tasks.tasks(slice(2, 3))).probabilities()
    torch.testing.assert_close(alone[0], first[2])
    objective, regression = linear()
    one = predictive(objective.model, objective.guide, regression).labels.mean
    state = torch.get_rng_state()
    torch.testing.assert_close(predictive(objective.model, objective.guide, regression).labels.mean, one, rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_readings_share_an_unrolling_of_the_same_tasks_alone():
    _, guide = build(steps=2)
    tasks, others, steps = episode(2).unlabelled(), episode(4).tasks(slice(2, 4)).unlabelled(), []
    expected = guide.after(1).unroll(*others)
    guide.gradient.register_forward_hook(lambda *_: steps.append(1))
    short, whole = sharing_steps([guide.after(1), guide])
    torch.testing.assert_close(whole.unroll(*tasks)[:2], short.unroll(*tasks))
    assert len(steps) == guide.steps, "the longer one's alone"
    torch.testing.assert_close(short.unroll(*others), expected)


def test_the_seed_decides_the_draws():
    model, guide = build()
    one, other = (predictive(model, guide, episode(), seed=seed).labels.logits for seed in (0, 1))
    assert not torch.allclose(one, other)


def test_distortion_is_the_mean_of_the_draws_and_not_of_their_mixture():
    model, guide = build()
    tasks = episode()
    predicted = predictive(model, guide, tasks)
    nats = torch.stack([
        -dist.Categorical(logits=predicted.labels.logits[s]).log_prob(tasks.query_y).sum(-1) for s in range(predicted.num_draws)
    ])  # fmt: skip
    torch.testing.assert_close(predicted.distortion(tasks.query_y), nats.mean(0))
    assert (predicted.distortion(tasks.query_y) > -predicted.log_predictive(tasks.query_y).sum(-1)).all()


@pytest.mark.parametrize("made_of", ["logits", "probs"])
@pytest.mark.parametrize("kind", [dist.Categorical, dist.Bernoulli])
def test_probabilities_are_those_of_the_labels(kind, made_of):
    logits = 30 * torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_classes = kind is dist.Categorical
    expected = logits.softmax(-1) if of_classes else logits.sigmoid()
    labels = kind(**{made_of: logits if made_of == "logits" else expected})
    torch.testing.assert_close(Predictive(labels, None).probabilities(), expected.mean(0), rtol=1e-12, atol=0)


def test_place_is_read_off_parameters_and_buffers():
    _, guide = build()
    assert place_of(guide) == (torch.device("cpu"), torch.float64)
    assert place_of(nn.Identity(), guide)[1] == torch.float64
    assert place_of(nn.Identity()) == (torch.device("cpu"), torch.get_default_dtype())


class TestCorrelatedPosteriors:
    """Those of :class:`~models.distributions.support_gaussian.SupportGaussian` follow the noise of independent Gaussians."""

    def drawn(self, tasks, seed=0, draws=4000):
        prior = GaussianPrior(torch.zeros(4), torch.ones(4)).double()
        sampler = EpisodeSampler(gaussian_bank(dim=4, noise=1.0), TaskSpec(3, 2, 2))
        episode = sampler.sample(5, seed=1).to(dtype=torch.float64).tasks(tasks)
        guide = RidgePosteriorGuide(prior, 0.5).double()
        with CommonNoise(seed), shared_draws():
            sampled = trace_guide(guide, episode, draws).nodes["weights"]["value"]
        return sampled.squeeze(2), guide.posterior(episode.support_x, episode.support_y, 3)

    def test_have_the_posteriors_moments(self):
        drawn, posterior = self.drawn(slice(2))
        torch.testing.assert_close(drawn.mean(0), posterior.mean, rtol=0, atol=1e-10)  # antithetic
        torch.testing.assert_close(drawn.var(0), posterior.variance, rtol=0.15, atol=0)

    def test_do_not_depend_on_which_tasks_share_a_batch(self):
        torch.testing.assert_close(self.drawn(slice(5), draws=6)[0][:, 3], self.drawn(slice(3, 4), draws=6)[0][:, 0])

    def test_are_of_the_seed(self):
        assert torch.equal(self.drawn(slice(2), draws=6)[0], self.drawn(slice(2), draws=6)[0])
        assert not torch.equal(self.drawn(slice(2), draws=6)[0], self.drawn(slice(2), seed=1, draws=6)[0])
