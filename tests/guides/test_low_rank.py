"""The low-rank guide on the exact posterior of linear regression with correlated inputs."""

import pytest
import torch
from torch import nn

from data.regression import linear_evidence, linear_posterior
from guides.low_rank import LowRankGuide
from inference.elbo import RateDistortionELBO
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.likelihoods import GaussianLikelihood
from tests.conftest import descend

NOISE, SCALE = 0.5, 1.5


def test_starts_with_the_scale_asked_for():
    guide = LowRankGuide(torch.zeros(40, 50), 0.1, rank=4)
    assert float(guide.distribution().variance.mean().sqrt().detach()) == pytest.approx(0.1, rel=0.02)


def test_both_parts_are_in_the_units_of_the_weights():
    units = WeightScales({"weight": torch.Size([80, 25])}, PriorScales.FAN_IN)
    variance = LowRankGuide(torch.zeros(1, 2000), 0.1, rank=4, scales=units).distribution().variance.detach()
    assert float(variance.mean().sqrt()) == pytest.approx(0.1 / 5, rel=0.05)


def test_with_enough_rank_it_lands_on_the_exact_posterior_and_evidence(float64):
    x = torch.randn(40, 3) @ torch.tensor([[1.0, 0.9, 0], [0, 0.4, 0], [0, 0, 1]])
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + NOISE * torch.randn(40)
    model = BayesianNetwork(nn.Linear(3, 1, bias=False), GaussianWeightPrior(SCALE), GaussianLikelihood(NOISE, learned=False))
    guide = LowRankGuide(torch.zeros(2, 3), 0.1, rank=3)
    model.posteriors = 2
    options = {"num_particles": 100, "vectorize_particles": True, "max_plate_nesting": 2}
    objective = RateDistortionELBO(beta=1.0, **options)(model, guide)
    descend(objective, x.expand(2, 40, 3), y.expand(2, 40))
    prior = torch.zeros(3), torch.full((3,), SCALE)
    mean, covariance = linear_posterior(x[None], y[None], *prior, NOISE)
    q = guide.distribution()
    for k in range(2):
        torch.testing.assert_close(q.loc[k, 0].detach(), mean[0], atol=0.02, rtol=0)
        torch.testing.assert_close(q.covariance_matrix[k, 0].detach(), covariance[0], atol=0.003, rtol=0.05)
    with torch.no_grad():
        loss = torch.stack([objective(x.expand(2, 40, 3), y.expand(2, 40)) for _ in range(20)]).mean() / 2
    assert float(-loss) == pytest.approx(float(linear_evidence(x[None], y[None], *prior, NOISE)[0]), abs=0.03)
