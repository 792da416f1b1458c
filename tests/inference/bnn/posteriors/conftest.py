"""Bayesian linear regression as a network: posterior, evidence and predictive are known."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from data.items import LabelledItems
from data.regression import linear_evidence, linear_posterior
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior
from models.likelihoods import GaussianLikelihood

NOISE, SCALE = 0.5, 1.5


class Exact(NamedTuple):
    """A linear network, its data, and what is true of it."""

    network: nn.Module
    model: BayesianNetwork
    data: LabelledItems
    mean: Tensor
    covariance: Tensor
    evidence: float

    def predictive_variance(self, x: Tensor) -> Tensor:
        """Of the function, without noise: ``[n, D]`` to ``[n]``."""
        return ((x @ self.covariance) * x).sum(-1)


@pytest.fixture
def exact(float64) -> Exact:
    """Correlated inputs, so that the posterior is far from mean-field."""
    x = torch.randn(40, 3) @ torch.tensor([[1.0, 0.9, 0], [0, 0.4, 0], [0, 0, 1]])
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + NOISE * torch.randn(40)
    prior = torch.zeros(3), torch.full((3,), SCALE)
    mean, covariance = linear_posterior(x[None], y[None], *prior, NOISE)
    network = nn.Linear(3, 1, bias=False)
    model = BayesianNetwork(network, GaussianWeightPrior(SCALE), GaussianLikelihood(NOISE, learned=False), num_data=40)
    evidence = float(linear_evidence(x[None], y[None], *prior, NOISE)[0])
    return Exact(network, model, LabelledItems(x, y, ()), mean[0], covariance[0], evidence)
