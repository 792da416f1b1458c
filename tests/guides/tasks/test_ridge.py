"""Ridge regression on one-hot labels: two systems with one solution, the posterior against dense formulas, and its rate."""

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.util import check_model_guide_match
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import MultivariateNormal, kl_divergence

from data.episodes import Episode
from data.regression import linear_posterior
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.ridge import RidgeClassifierStart, RidgePosteriorGuide, one_hot, ridge_weights
from guides.tasks.rules import GradientStep
from guides.tasks.unrolled import UnrolledGuide
from inference.direct import direct_traces
from inference.elbo import RateDistortionELBO
from inference.evaluation.predictive import predictive
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import class_means
from models.parameters import logarithms
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

WAY, TASKS = 3, 2


def episode(shot: int = 2, features: int = 4, dtype=torch.float64) -> Episode:
    """Tasks with a class each more likely than chance."""
    labels = torch.arange(WAY).repeat(shot).expand(TASKS, -1)
    centres = torch.randn(TASKS, WAY, features, dtype=dtype)
    items = centres[:, labels[0]] + 0.3 * torch.randn(TASKS, WAY * shot, features, dtype=dtype)
    queries = centres.repeat(1, 2, 1) + 0.3 * torch.randn(TASKS, 2 * WAY, features, dtype=dtype)
    return Episode(items, labels, queries, torch.arange(WAY).repeat(2).expand(TASKS, -1), WAY)


def bayesian(features: int = 4, noise: float = 0.4):
    """Model and guide around a prior whose mean is not 0, in double precision."""
    return tuple(program.double() for program in single(features, noise))


def single(features: int = 4, noise: float = 0.4):
    """The same in single precision."""
    prior = GaussianPrior(torch.randn(features) / 2, torch.rand(features) + 0.5)
    return EmpiricalBayesModel(prior, LinearPredictor(5.0)), RidgePosteriorGuide(prior, noise)


class TestRidgeWeights:
    @pytest.mark.parametrize("items", [3, 6, 11])
    def test_both_systems_have_one_solution(self, items, float64):
        features, targets, strength = torch.randn(2, items, 5), torch.randn(2, items, 3), torch.tensor(0.7)
        primal, dual = (ridge_weights(features, targets, strength, dual=dual) for dual in (False, True))
        torch.testing.assert_close(primal, dual, atol=1e-12, rtol=1e-12)
        expected = torch.linalg.solve(features.mT @ features + 0.7 * torch.eye(5), features.mT @ targets).mT
        torch.testing.assert_close(primal, expected)
        torch.testing.assert_close(ridge_weights(features, targets, strength), expected)

    def test_a_strength_for_each_feature(self, float64):
        features, targets, strength = torch.randn(2, 3, 5), torch.randn(2, 3, 2), torch.rand(5) + 0.1
        expected = torch.linalg.solve(features.mT @ features + strength.diag(), features.mT @ targets).mT
        torch.testing.assert_close(ridge_weights(features, targets, strength), expected)

    @pytest.mark.parametrize("features", [3, 8])
    def test_it_is_the_mode_of_bayesian_linear_regression(self, features, float64):
        """Of each output by itself, under noise σ and a prior of scale s: λ = σ² / s²."""
        x, y, noise, scale = torch.randn(2, 5, features), torch.randn(2, 5, 3), 0.4, 1.7
        found = ridge_weights(x, y, torch.tensor(noise**2 / scale**2))
        for output in range(3):
            mean, _ = linear_posterior(x, y[..., output], torch.zeros(features), torch.full((features,), scale), noise)
            torch.testing.assert_close(found[:, output], mean)

    @pytest.mark.parametrize("dual", [False, True])
    def test_gradients(self, dual, float64):
        inputs = (torch.randn(4, 3), torch.randn(4, 2), torch.tensor(0.6))
        inputs = tuple(t.requires_grad_() for t in inputs)
        assert torch.autograd.gradcheck(lambda x, y, strength: ridge_weights(x, y, strength, dual=dual), inputs)


class TestStart:
    def test_under_a_strong_prior_it_points_to_class_means(self):
        """λ W → Yᵀ X, the sum of each class's items."""
        task = episode(shot=3)
        start = RidgeClassifierStart(1e7).double()
        loc, _ = start(task.support_x, task.support_y, task.query_x, WAY)
        means = class_means(task.support_x, task.support_y)
        torch.testing.assert_close(F.normalize(loc, dim=-1), F.normalize(means, dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(1e7 * loc, 3 * means, atol=1e-4, rtol=1e-4)

    def test_it_is_ridge_regression_on_one_hot_labels(self):
        task = episode()
        loc, log_scale = RidgeClassifierStart(0.3).double()(task.support_x, task.support_y, task.query_x, WAY)
        x, y = task.support_x, F.one_hot(task.support_y, WAY).double()
        precision = x.mT @ x + 0.3 * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(loc, torch.linalg.solve(precision, x.mT @ y).mT, atol=1e-6, rtol=1e-6)  # 0.3 was float32
        expected = precision.diagonal(dim1=-2, dim2=-1).unsqueeze(-2).expand_as(loc)
        torch.testing.assert_close((-2 * log_scale).exp(), expected, atol=1e-6, rtol=1e-6)

    def test_renaming_classes_renames_rows(self):
        task, renamed = episode(), torch.tensor([2, 0, 1])
        start = RidgeClassifierStart().double()
        loc, _ = start(task.support_x, task.support_y, task.query_x, WAY)
        other, _ = start(task.support_x, renamed[task.support_y], task.query_x, WAY)
        torch.testing.assert_close(other[:, renamed], loc)

    def test_strength_is_learned_on_the_log_scale(self):
        assert [p.item() for p in logarithms(RidgeClassifierStart(2.0))] == [pytest.approx(0.6931472)]
        assert not list(RidgeClassifierStart(learned=False).parameters())

    def test_as_a_point_without_steps_it_is_r2d2(self):
        """Every parameter gets a gradient but what a point and no steps leave out, and queries are told apart."""
        task, features = episode(dtype=torch.float32), 4
        prior, predictor = GaussianPrior(torch.zeros(features), torch.ones(features)), LinearPredictor(5.0)
        start, rule = RidgeClassifierStart(0.1), GradientStep(0, features)
        gradient = ExactGradient(CategoricalLikelihood())
        guide = UnrolledGuide(prior, predictor, start, gradient, rule, steps=0, family=Family.DELTA)
        model = EmpiricalBayesModel(prior, predictor)
        RateDistortionELBO(beta=0.0)(model, guide)(*task).backward()
        assert start.log_strength.grad.abs() > 0
        assert predictor.log_scale.grad.abs() > 0
        found = predictive(model, guide, task)
        weights, _ = start(task.support_x, task.support_y, task.query_x, WAY)
        torch.testing.assert_close(found.labels.logits, (5 * task.query_x @ weights.mT).log_softmax(-1)[None])
        assert (found.probabilities().argmax(-1) == task.query_y).float().mean() > 0.7
        assert found.rate is None


class TestPosterior:
    @pytest.mark.parametrize("features", [4, 9])  # fewer and more than items
    def test_it_is_the_dense_formula(self, features):
        task, (model, guide) = episode(features=features), bayesian(features)
        q = guide.posterior(task.support_x, task.support_y, WAY)
        noise, rate = float(guide.log_noise.detach().exp()), 0.0
        loc, scale = model.prior.loc.detach(), model.prior.log_scale.detach().exp()
        for c in range(WAY):
            targets = (task.support_y == c).double()
            mean, covariance = linear_posterior(task.support_x, targets, loc, scale, noise)
            torch.testing.assert_close(q.mean[:, c], mean)
            torch.testing.assert_close(q.variance[:, c], covariance.diagonal(dim1=-2, dim2=-1))
            rate += kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(loc, torch.diag(scale**2)))
        prior = model.prior.distribution(model.prior.hyperparameters(), WAY)
        torch.testing.assert_close(kl_divergence(q, prior), rate)

    def test_the_mean_is_ridge_regression(self):
        task = episode()
        prior = GaussianPrior(torch.zeros(4), torch.full((4,), 2.0))
        q = RidgePosteriorGuide(prior, 0.5).double().posterior(task.support_x, task.support_y, WAY)
        targets = one_hot(task.support_y, WAY, task.support_x)
        expected = ridge_weights(task.support_x, targets, torch.tensor(0.25 / 4, dtype=torch.float64))
        torch.testing.assert_close(q.mean, expected)

    def test_model_and_guide_give_a_rate_and_draws(self):
        task, (model, guide) = episode(), bayesian()
        traces = (poutine.trace(program).get_trace(*task) for program in (model, guide))
        check_model_guide_match(*traces, 2)  # a mismatch is a warning, and warnings are errors
        objective = RateDistortionELBO(beta=1.0)(model, guide)
        objective(*task).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in objective.parameters())
        found = predictive(model, guide, task, num_samples=50)
        q = guide.posterior(task.support_x, task.support_y, WAY)
        rate = kl_divergence(q, model.prior.distribution(model.prior.hyperparameters(), WAY))
        torch.testing.assert_close(found.rate, rate.detach())
        assert found.num_draws == 50
        assert (found.probabilities().argmax(-1) == task.query_y).float().mean() > 0.7

    def test_traced_or_told_directly_it_is_one_objective(self):
        task, (model, guide) = episode(), bayesian()
        objective = RateDistortionELBO(beta=0.7)
        assert direct_traces(model, guide, task, {}) is not None
        pyro.set_rng_seed(0)
        direct = objective.trace_terms(*direct_traces(model, guide, task, {}))
        pyro.set_rng_seed(0)
        traced = objective.trace_terms(*objective._follow(model, guide, task, {}))
        torch.testing.assert_close(direct.loss, traced.loss)
        torch.testing.assert_close(direct.rate, traced.rate)

    def test_draws_in_two_plates_of_particles(self):
        task, (model, guide) = episode(), bayesian()
        options = {"num_particles": 3000, "vectorize_particles": True, "max_plate_nesting": 2}
        many = RateDistortionELBO(**options)(model, guide).terms(*task)
        few = RateDistortionELBO(num_particles=2)(model, guide).terms(*task)
        torch.testing.assert_close(many.rate, few.rate)

    def test_tasks_do_not_mix(self):
        task, (_, guide) = episode(), bayesian()
        together = guide.posterior(task.support_x, task.support_y, WAY)
        alone = guide.posterior(task.support_x[:1], task.support_y[:1], WAY)
        torch.testing.assert_close(together.mean[:1], alone.mean)
        torch.testing.assert_close(together.variance[:1], alone.variance)

    def test_without_a_support_it_is_the_prior(self):
        task, (model, guide) = episode(), bayesian()
        nothing = task._replace(support_x=task.support_x[:, :0], support_y=task.support_y[:, :0])
        terms = RateDistortionELBO()(model, guide).terms(*nothing)
        assert terms.rate.item() == pytest.approx(0.0, abs=1e-12)

    def test_on_another_device_nothing_is_read_back(self):
        with FakeTensorMode(), torch.device("cuda"):
            (model, guide), task = single(), episode(dtype=torch.float32)
            terms = RateDistortionELBO()(model, guide).terms(*task)
            loc, _ = RidgeClassifierStart()(task.support_x, task.support_y, task.query_x, WAY)
        assert {t.device.type for t in (terms.loss, terms.rate, loc)} == {"cuda"}
