"""Records of meta-learners on regression, beside closed forms."""

import math
from dataclasses import replace

import pytest
import torch

from data.regression import linear_posterior, sinusoid_tasks
from inference.diagnostics.calibration import distribution_level
from inference.evaluation.predictive import predictive
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_scores import exact_reference, measure, moments, said, score
from inference.meta.regression_tasks import (
    LINEAR_PRIOR,
    NOISE,
    TEST,
    VALIDATION,
    Problem,
    exact_log_predictive,
    exact_sinusoid_predictive,
)
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from models.distributions.support_gaussian import SupportGaussian


def setup_of(problem):
    return Setup(Problem(problem), GuideSettings(), MetaSchedule(1000, batch=25), 5)


def made(name, problem, given=""):
    method = REGRESSION_METHODS[name]
    variant = method.variants(VariantSettings(beta=(1.0,), given=given), Problem(problem))[0]
    return variant, method.build(setup_of(problem), variant).double()


@pytest.fixture(params=["conjugate", "ridge"])
def right(request):
    """An exact posterior with the true prior and noise."""
    variant, fit = made(request.param, "linear")
    with torch.no_grad():
        fit.model.prior.loc.copy_(LINEAR_PRIOR[0])
        fit.model.prior.log_scale.copy_(LINEAR_PRIOR[1].double().log())
        fit.model.likelihood.log_noise.fill_(torch.tensor(NOISE["linear"]).double().log())
    return variant, fit


def test_exact_bayes_has_no_regret(right, tmp_path):
    variant, fit = right
    setup, tasks = setup_of("linear"), setup_of("linear").draw(120, seed=4)
    reference = exact_reference(setup.problem, tasks, tmp_path)
    record = score(fit, variant, setup, tasks, TEST, reference=reference)
    assert record.regret == pytest.approx(0, abs=1e-7)
    assert record.nll == pytest.approx(record.exact_nll, abs=1e-7)
    assert record.reference == "exact Bayes"
    mean, covariance = linear_posterior(tasks.support_x, tasks.support_y, *(p.double() for p in LINEAR_PRIOR), 0.5)
    error = (tasks.query_x @ mean[..., None])[..., 0] - tasks.query_y
    spread = (((tasks.query_x @ covariance) * tasks.query_x).sum(-1) + 0.25).sqrt()
    assert record.mse == pytest.approx(float(error.square().mean()), rel=0.02)
    assert record.mse_median == pytest.approx(float(error.square().mean(-1).median()), rel=0.05)
    assert record.rmse == pytest.approx(record.mse**0.5)
    assert record.coverage90 == pytest.approx(float((error.abs() < 1.645 * spread).double().mean()), abs=0.02)
    prior = torch.distributions.MultivariateNormal(LINEAR_PRIOR[0].double(), torch.diag(LINEAR_PRIOR[1].double() ** 2))
    rate = torch.distributions.kl_divergence(torch.distributions.MultivariateNormal(mean, covariance), prior)
    assert record.rate == pytest.approx(float(rate.mean()))
    assert record.noise == pytest.approx(0.5)
    assert (record.split, record.adapted, record.shared, record.episodes) == ("test", 3, 7, 120)
    assert not record.transductive
    assert record.support_information > 0.3


def test_validation_has_no_reference(right):
    variant, fit = right
    record = score(fit, variant, setup_of("linear"), setup_of("linear").draw(20, seed=4), VALIDATION, seconds=10.0)
    assert (record.split, record.regret, record.exact_nll) == ("val", None, None)
    assert record.tasks_per_second == 100


def test_a_wrong_posterior_has_regret(right, tmp_path):
    variant, fit = right
    with torch.no_grad():
        fit.model.likelihood.log_noise.add_(0.5)
    setup, tasks = setup_of("linear"), setup_of("linear").draw(120, seed=4)
    record = score(fit, variant, setup, tasks, TEST, reference=exact_reference(setup.problem, tasks, tmp_path))
    assert record.regret - record.regret_ci95 > 0.02


def test_the_reference_of_raw_inputs_is_that_of_features(tmp_path):
    tasks, features = setup_of("sinusoids").draw(6, seed=2), sinusoid_tasks(6, queries=5, seed=2).to(dtype=torch.float64)
    found = exact_reference(Problem("sinusoids"), tasks, tmp_path).log_predictive
    torch.testing.assert_close(found, exact_sinusoid_predictive(features), rtol=1e-2, atol=1e-2)
    linear = setup_of("linear").draw(3, seed=1)
    assert torch.equal(exact_reference(Problem("linear"), linear, tmp_path).log_predictive, exact_log_predictive(linear))


def test_densities_are_of_the_mixture_over_draws_where_outputs_are_not_linear():
    _, fit = made("llama", "network")
    tasks = setup_of("network").draw(3, seed=5)
    scores, logs = measure(fit, tasks)
    ((seen, predicted),) = said(fit, tasks)
    assert predicted.num_draws == 400
    expected = predicted.labels.log_prob(seen.query_y).exp().mean(0).log()
    torch.testing.assert_close(logs, expected)
    assert scores["distortion"] == pytest.approx(float(-predicted.labels.log_prob(seen.query_y).sum(-1).mean()))
    levels = distribution_level(predicted.labels, seen.query_y)
    assert scores["coverage90"] == pytest.approx(float(((2 * levels - 1).abs() <= 0.9).double().mean()))


def test_moments_are_those_of_draws():
    fn = SupportGaussian(torch.randn(2, 1, 1, 4), torch.rand(1, 4) + 0.5, torch.randn(2, 1, 3, 4)).expand((1, 2, 1))
    mean, covariance = moments(fn)
    drawn = fn.sample((40000,))[:, 0, :, 0, 0].double()
    torch.testing.assert_close(mean.double(), drawn.mean(0), atol=0.03, rtol=0)
    for t in range(2):
        torch.testing.assert_close(covariance[t], torch.cov(drawn[:, t].T), atol=0.05, rtol=0)


def test_points_have_no_rate_and_runaways_are_counted():
    variant, fit = made("maml", "linear", "steps=1")
    tasks = setup_of("linear").draw(40, seed=4)
    calm = score(fit, variant, setup_of("linear"), tasks, TEST)
    assert (calm.rate, calm.diverged, calm.steps, calm.given) == (None, 0.0, 1, "steps=1")
    wild = tasks._replace(support_y=tasks.support_y.clone(), query_y=tasks.query_y.clone())
    wild.query_y[0] += 1e4
    wild.support_y[1] = torch.inf
    found = score(fit, variant, setup_of("linear"), wild, TEST)
    assert found.diverged == pytest.approx(2 / 40)
    assert (found.mse, found.rmse, found.nll) == (None, None, None)
    assert found.mse_median == pytest.approx(calm.mse_median, rel=0.2)
    labels = predictive(fit.model, fit.guide, fit.embed(tasks)).labels
    errors = (labels.mean[0] - tasks.query_y).square().mean(-1)
    assert calm.mse == pytest.approx(float(errors.mean()), rel=1e-6)
    assert calm.mse_median == pytest.approx(float(errors.median()), rel=1e-6)
    assert replace(calm, selected=True).selected


def test_exact_bayes_of_sinusoids_or_lines_integrates_both_numbers_of_either(tmp_path):
    """By the midpoint rule over both, with the noise that the paper has, and more tasks than are integrated at once."""
    problem = Problem("ambiguous", 3)
    tasks, middle = problem.tasks(21, queries=2, seed=4), (torch.arange(300) + 0.5).double() / 300
    first, second = (part.flatten() for part in torch.meshgrid(middle, middle, indexing="ij"))

    def logs(x, y):  # [tasks, functions, n]
        waves = (0.1 + 4.9 * first[:, None]) * torch.sin(x[:, None, :, 0] + math.pi * second[:, None])
        lines = (6 * first[:, None] - 3) * x[:, None, :, 0] + 6 * second[:, None] - 3
        return torch.distributions.Normal(torch.cat([waves, lines], 1), 0.3).log_prob(y[:, None])

    weights = logs(tasks.support_x, tasks.support_y).sum(-1).log_softmax(1)
    expected = (weights[..., None] + logs(tasks.query_x, tasks.query_y)).logsumexp(1)
    found = exact_reference(problem, tasks, tmp_path)
    assert found.name == "exact Bayes"
    torch.testing.assert_close(found.log_predictive, expected, rtol=0, atol=2e-3)
