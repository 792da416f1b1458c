"""Few-shot regression by the command, beside the exact predictive density and the task itself."""

import json
import math

import arviz
import pytest
import torch

from data.errors import UserError
from data.regression import linear_evidence, linear_posterior
from guides.tasks.conjugate import ConjugateGuide
from inference.elbo import RateDistortionELBO
from inference.meta.options import SibOptions
from inference.meta.regression import LINEAR_PRIOR, TEST, build_regression, exact_nll, regression_tasks, scored_tasks
from inference.svi_sib import main
from models.likelihoods import GaussianLikelihood
from models.tasks.priors import GaussianPrior

NOISE = 0.5


def known_objective(beta=1.0):
    """The program at the true prior and noise, in double precision."""
    objective = build_regression(3, beta)
    objective.model.prior.loc.data = LINEAR_PRIOR[0].double()
    objective.model.prior.log_scale.data = LINEAR_PRIOR[1].double().log()
    objective.model.likelihood.log_noise.data = torch.tensor(NOISE, dtype=torch.float64).log()
    return objective


def tasks(count=20):
    return regression_tasks("linear", count, queries=6, seed=3)


def test_guide_is_the_exact_posterior():
    objective, episode = known_objective(), tasks()
    mean, factor = objective.guide.posterior(episode.support_x, episode.support_y)
    prior = [part.double() for part in LINEAR_PRIOR]
    expected = linear_posterior(episode.support_x, episode.support_y, *prior, NOISE)
    torch.testing.assert_close(mean[:, 0], expected[0])
    torch.testing.assert_close(factor @ factor.mT, expected[1])


def test_objective_is_minus_the_evidence_of_the_support():
    objective, episode = known_objective(), tasks()
    prior = [part.double() for part in LINEAR_PRIOR]
    evidence = linear_evidence(episode.support_x, episode.support_y, *prior, NOISE).sum()
    particles = {"num_particles": 100, "vectorize_particles": True, "max_plate_nesting": 2}
    many = RateDistortionELBO(**particles)(objective.model, objective.guide)
    losses = torch.stack([many(*episode.on_support()).detach() for _ in range(50)])
    assert float(losses.mean()) == pytest.approx(-float(evidence), abs=4 * float(losses.std()) / 50**0.5)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_guide_minimises_distortion_plus_beta_times_rate(beta):
    """Moving the tempered posterior's mean in any direction only raises the objective, to first order not at all."""
    objective, episode = known_objective(beta), tasks(1)
    x, y = episode.support_x, episode.support_y
    loc, scale = (part.double() for part in LINEAR_PRIOR)
    mean, factor = (part.detach() for part in objective.guide.posterior(x, y))
    mean, factor = mean[:, 0].requires_grad_(), factor.requires_grad_()
    covariance = factor @ factor.mT
    squares = (y - (x @ mean[..., None])[..., 0]).square() + ((x @ covariance) * x).sum(-1)
    distortion = (0.5 * squares / NOISE**2 + 0.5 * math.log(2 * math.pi * NOISE**2)).sum()
    q = torch.distributions.MultivariateNormal(mean, covariance)
    rate = torch.distributions.kl_divergence(q, torch.distributions.MultivariateNormal(loc, torch.diag(scale**2))).sum()
    for gradient in torch.autograd.grad(distortion + beta * rate, (mean, factor)):
        torch.testing.assert_close(gradient.tril(), torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_exact_nll_is_the_mean_of_single_query_densities():
    """One query's density is the evidence with it less the evidence without."""
    episode = tasks()
    prior = [part.double() for part in LINEAR_PRIOR]
    alone = linear_evidence(episode.support_x, episode.support_y, *prior, NOISE)
    densities = []
    for i in range(6):
        x = torch.cat([episode.support_x, episode.query_x[:, i : i + 1]], 1)
        y = torch.cat([episode.support_y, episode.query_y[:, i : i + 1]], 1)
        densities.append(linear_evidence(x, y, *prior, NOISE) - alone)
    assert exact_nll(episode) == pytest.approx(-float(torch.stack(densities).mean()), abs=1e-5)


def test_zero_beta_is_refused():
    with pytest.raises(ValueError, match="positive"):
        ConjugateGuide(GaussianPrior(torch.zeros(3), torch.ones(3)), GaussianLikelihood(), beta=0.0)
    with pytest.raises(UserError, match="positive"):
        main(["--data", "linear", "--beta", "0,1"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rmse"), [("linear", 0.6), ("sinusoids", 0.8)])
def test_regression_run(name, rmse, tmp_path):
    options = {"test_tasks": 300}
    arguments = ["--data", name, "--beta", "0.1,1", "--test-tasks", "300", "--out", str(tmp_path / "run")]
    run = main(arguments)
    records = [r for r in json.loads(run.metrics.read_text())["results"] if r["split"] == "test"]
    assert [r["beta"] for r in records] == [0.1, 1.0]
    record = records[1]
    assert record["selected"]
    assert not records[0]["selected"]
    assert record["rmse"] < rmse  # the exact posterior's: 0.585; the sinusoids' own standard deviation: 2.1
    assert 0.88 < record["coverage90"] < 0.93
    assert arviz.from_netcdf(run.posterior).posterior["weights"].dims == ("chain", "draw", "task", "class", "feature")
    if name == "linear":
        assert record["exact_nll"] == pytest.approx(exact_nll(scored_tasks(SibOptions(data="linear", **options), TEST)))
        assert record["exact_nll"] - 0.002 < record["nll"] < record["exact_nll"] + 0.01
        assert record["noise"] == pytest.approx(NOISE, abs=0.02)
