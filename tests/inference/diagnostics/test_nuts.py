"""NUTS on linear regression lands on the exact posterior, within its own error."""

import pytest
import torch

from data.regression import linear_posterior
from inference.diagnostics.nuts import compare_moments, effective_draws, r_hat, run_nuts
from inference.diagnostics.regret import mixture_log_density, regret
from inference.meta.regression_reference import fingerprint, nuts_reference
from inference.meta.regression_tasks import LINEAR_PRIOR, NOISE, Problem, exact_log_predictive
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior


def known_model():
    likelihood = GaussianLikelihood(NOISE["linear"], learned=False)
    prior = GaussianPrior(*LINEAR_PRIOR, learned=False)
    return EmpiricalBayesModel(prior, LinearPredictor(1.0, learned=False), likelihood).double()


def tasks():
    return Problem("linear").tasks(4, queries=6, seed=2)


@pytest.mark.slow
def test_it_samples_the_exact_posterior_of_all_tasks_at_once():
    episode, model = tasks(), known_model()
    before = torch.random.get_rng_state()
    found = run_nuts(model, *episode.on_support(), draws=200, warmup=100, max_tree_depth=4)
    assert torch.equal(torch.random.get_rng_state(), before), "torch's random state is left as it was"
    weights = found.sites["weights"].squeeze(-3)[..., 0, :]  # [chains, draws, tasks, D]
    assert weights.shape == (2, 200, 4, 3)
    assert found.divergences == 0
    assert float(r_hat(weights).max()) < 1.05
    mean, covariance = linear_posterior(
        episode.support_x, episode.support_y, *(p.double() for p in LINEAR_PRIOR), NOISE["linear"]
    )
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    error = scale / effective_draws(weights).clamp(max=400).sqrt()
    pooled = found.pooled("weights").squeeze(-3)[..., 0, :]
    assert ((pooled.mean(0) - mean).abs() < 4 * error).all()
    torch.testing.assert_close(pooled.std(0) / scale, torch.ones_like(scale), atol=0.25, rtol=0)


@pytest.mark.slow
def test_its_predictive_is_the_exact_one_and_is_kept_on_disk(tmp_path, capsys):
    episode, model, size = tasks(), known_model(), {"draws": 120, "warmup": 80}
    first = nuts_reference(model, episode, tmp_path, **size)
    again = nuts_reference(model, episode, tmp_path, **size)
    torch.testing.assert_close(first.log_predictive, again.log_predictive)
    assert capsys.readouterr().out.count("NUTS on 4 test tasks") == 1, "sampled once"
    found = regret(exact_log_predictive(episode), mixture_log_density(first.log_predictive))
    assert found.mean == pytest.approx(0, abs=0.03)
    assert first.weights.shape == (240, 4, 3)
    keys = {
        fingerprint(model, e, 120, w)
        for e, w in ((episode, 80), (Problem("linear").tasks(4, queries=6, seed=3), 80), (episode, 90))
    }
    assert len(keys) == 3, "other tasks and other lengths have their own"


def test_one_chain_cannot_tell_its_error():
    with pytest.raises(ValueError, match="two or more"):
        run_nuts(known_model(), *tasks().on_support(), chains=1)


def test_moments_are_in_the_reference_s_units():
    torch.manual_seed(0)
    reference = 2 * torch.randn(4000, 5)
    found = compare_moments(1 + torch.randn(4000, 5), reference)
    assert found.shift == pytest.approx(0.5, abs=0.05)
    assert found.scale_ratio == pytest.approx(0.5, abs=0.03)
    inside = torch.distributions.Normal(0, 2).cdf(torch.tensor([-0.645, 2.645]))
    assert found.coverage90 == pytest.approx(float(inside[1] - inside[0]), abs=0.03)
