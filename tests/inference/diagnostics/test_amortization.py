"""Optimisation on each task lands on the closed forms of linear regression; PSIS k tells near from far."""

import pytest
import torch

from data.regression import linear_evidence, linear_posterior
from guides.tasks.conjugate import ConjugateGuide
from guides.tasks.free import FreeGaussianGuide
from inference.diagnostics.amortization import full_guide, optimise_tasks, pareto_k, prior_guide, psis_k, task_losses
from inference.meta.regression_tasks import LINEAR_PRIOR, NOISE, Problem
from tests.inference.diagnostics.test_nuts import known_model

PRIOR = [part.double() for part in LINEAR_PRIOR]


@pytest.fixture(scope="module")
def solved():
    """Tasks, model, exact moments and the diagonal optimum found by descent."""
    episode, model = Problem("linear").tasks(20, queries=4, seed=3), known_model()
    exact = linear_posterior(episode.support_x, episode.support_y, *PRIOR, NOISE["linear"])
    return episode, model, exact, optimise_tasks(model, prior_guide(model, episode), episode, steps=600)


def test_the_best_diagonal_gaussian_has_the_exact_mean_and_the_precision_s_diagonal(solved):
    _episode, _model, (mean, covariance), guide = solved
    scale = torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1).rsqrt()
    torch.testing.assert_close((guide.loc[:, 0] - mean) / scale, torch.zeros_like(mean), atol=0.15, rtol=0)
    torch.testing.assert_close(guide.log_scale.exp()[:, 0], scale, atol=0, rtol=0.1)


def test_its_loss_is_the_evidence_and_the_divergence_that_a_diagonal_must_keep(solved):
    """−ELBO = −log evidence + KL(q ‖ exact posterior), in closed form ½ log (det precision's diagonal · det covariance)⁻¹."""
    episode, model, (_mean, covariance), guide = solved
    evidence = linear_evidence(episode.support_x, episode.support_y, *PRIOR, NOISE["linear"])
    precision = torch.linalg.inv(covariance)
    kept = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision))
    losses = task_losses(model, guide, episode, num_samples=4000)
    assert float((losses + evidence - kept).mean()) == pytest.approx(0, abs=0.1)
    assert float(kept.mean()) > 0.1


def test_the_interval_of_a_gap_holds_the_error_of_its_draws():
    """The best diagonal Gaussian less the exact posterior, task by task, beside the closed form of that difference."""
    episode, model = Problem("linear").tasks(400, queries=1, seed=5), known_model()
    mean, covariance = linear_posterior(episode.support_x, episode.support_y, *PRIOR, NOISE["linear"])
    precision = torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1)
    kept = 0.5 * (precision.log().sum(-1) + torch.logdet(covariance))
    diagonal = FreeGaussianGuide(mean[:, None], precision.rsqrt()[:, None])
    exact = ConjugateGuide(model.prior, model.likelihood)
    found, other = (task_losses(model, g, episode, num_samples=100) for g in (diagonal, exact))
    error = found - other - kept
    assert error.std() / 400**0.5 < 0.02
    assert abs(float(error.mean())) < 3 * float(error.std()) / 400**0.5


def test_a_full_covariance_begins_at_the_diagonal_and_reaches_the_evidence(solved):
    episode, model, (_mean, covariance), guide = solved
    full = optimise_tasks(model, full_guide(guide), episode, steps=600, step_size=0.02)
    torch.testing.assert_close(full.covariance(), covariance, atol=0.02, rtol=0)
    exact = ConjugateGuide(model.prior, model.likelihood)
    found = [task_losses(model, g, episode, num_samples=4000).mean() for g in (full, exact)]
    assert float(found[0] - found[1]) == pytest.approx(0, abs=0.05)


def test_the_model_is_left_as_it_was(solved):
    episode, model = solved[0], Problem("linear").model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimise_tasks(model, prior_guide(model, episode), episode, steps=2)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_queries_can_be_what_is_given(solved):
    episode, model, *_ = solved
    guide = optimise_tasks(model, prior_guide(model, episode), episode, on="queries", steps=300)
    mean, _ = linear_posterior(episode.query_x, episode.query_y, *PRIOR, NOISE["linear"])
    torch.testing.assert_close(guide.loc[:, 0], mean, atol=0.2, rtol=0)


def test_beta_weighs_the_rate_in_what_is_optimised_and_in_its_loss(solved):
    """The optimum at β is that of a noise √β times as large, and its loss is the distortion and β times the rate."""
    episode, model, *_ = solved
    guide = optimise_tasks(model, prior_guide(model, episode), episode, beta=9.0, steps=600)
    mean, _ = linear_posterior(episode.support_x, episode.support_y, *PRIOR, 3 * NOISE["linear"])
    torch.testing.assert_close(guide.loc[:, 0], mean, atol=0.1, rtol=0)
    none, one, nine = (task_losses(model, guide, episode, beta=beta) for beta in (0.0, 1.0, 9.0))
    torch.testing.assert_close(nine - none, 9 * (one - none))
    assert bool((one > none).all()), "a rate"


def test_pareto_k_is_small_for_the_exact_posterior_and_large_for_a_narrow_one(solved):
    episode, model, (_mean, _covariance), guide = solved
    exact = ConjugateGuide(model.prior, model.likelihood)
    assert bool((psis_k(model, exact, episode) == 0).all()), "weights are equal up to rounding"
    narrow = FreeGaussianGuide(guide.loc, 0.3 * guide.log_scale.exp())
    assert float(psis_k(model, narrow, episode).median()) > 0.7


def test_pareto_k_of_a_known_tail():
    """Weights of a Pareto law with shape k."""
    torch.manual_seed(0)
    for k in (0.3, 0.9):
        logs = -k * torch.rand(4000, 5, dtype=torch.float64).log()
        assert float(pareto_k(logs).mean()) == pytest.approx(k, abs=0.12)
