"""Regret: 0 of the right posterior, the closed form of a Gaussian one, and its intervals."""

import math

import pytest
import torch

from data.regression import linear_evidence, linear_posterior
from inference.diagnostics.nuts import monte_carlo_error
from inference.diagnostics.regret import linear_log_predictive, mixture_log_density, regret
from inference.meta.regression_tasks import LINEAR_PRIOR, NOISE, Problem, exact_log_predictive

PRIOR = [part.double() for part in LINEAR_PRIOR]


def tasks(count=400):
    return Problem("linear").tasks(count, queries=8, seed=5)


def test_the_exact_posterior_has_none():
    episode = tasks(50)
    mean, covariance = linear_posterior(episode.support_x, episode.support_y, *PRIOR, NOISE["linear"])
    logs = linear_log_predictive(mean, covariance, episode.query_x, episode.query_y, NOISE["linear"])
    found = regret(exact_log_predictive(episode), logs)
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert found.error == 0


def test_exact_densities_are_those_of_single_queries():
    """One query's density is the evidence with it less the evidence without."""
    episode = tasks(5)
    alone = linear_evidence(episode.support_x, episode.support_y, *PRIOR, NOISE["linear"])
    for i in range(3):
        x = torch.cat([episode.support_x, episode.query_x[:, i : i + 1]], 1)
        y = torch.cat([episode.support_y, episode.query_y[:, i : i + 1]], 1)
        with_it = linear_evidence(x, y, *PRIOR, NOISE["linear"])
        torch.testing.assert_close(exact_log_predictive(episode)[:, i], with_it - alone, atol=1e-6, rtol=0)


def test_that_of_the_diagonal_posterior_is_its_closed_form():
    """E_y over the exact predictive N(m, v) of log N(y; m, v) − log N(y; m, u) = ½ (v/u − 1 − log v/u), u of the mean field."""
    episode = tasks()
    mean, covariance = linear_posterior(episode.support_x, episode.support_y, *PRIOR, NOISE["linear"])
    diagonal = torch.diag_embed(1 / torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1))
    v, u = ((((episode.query_x @ c) * episode.query_x).sum(-1) + NOISE["linear"] ** 2) for c in (covariance, diagonal))
    expected = (0.5 * (v / u - 1 - (v / u).log())).mean()
    logs = linear_log_predictive(mean, diagonal, episode.query_x, episode.query_y, NOISE["linear"])
    found = regret(exact_log_predictive(episode), logs)
    assert found.mean == pytest.approx(float(expected), abs=1.5 * found.ci95)
    assert 0 < float(expected) < 0.05


def test_the_interval_is_over_tasks_and_chains_tell_the_reference_s_error():
    torch.manual_seed(0)
    per_task = torch.randn(200, 1).expand(200, 50)  # queries of a task say the same
    found = regret(per_task, torch.zeros(200, 50))
    assert found.ci95 == pytest.approx(1.96 / 200**0.5, rel=0.15)
    assert found.tasks == 200
    chains = torch.stack([per_task, per_task + 0.2])
    assert regret(chains, torch.zeros(200, 50)).error == pytest.approx(1.96 * 0.2 / 2, rel=1e-3)
    assert regret(chains, torch.zeros(200, 50)).mean == pytest.approx(
        float(per_task.mean()) + math.log((1 + math.exp(0.2)) / 2), abs=1e-6
    )
    assert monte_carlo_error(torch.tensor([1.0, 1.0])) == 0


def test_the_mean_density_is_that_of_the_mixture():
    draws = torch.tensor([[0.2], [0.4]]).log()
    assert float(mixture_log_density(draws).exp()) == pytest.approx(0.3)
