"""Data that a Bayesian network can and cannot take: one line each."""

import pytest
import torch
from torch import nn

from data.errors import UserError
from inference.bnn.bnn import BNN
from inference.bnn.checks import likelihood_name
from models.likelihoods import LIKELIHOODS
from tests.inference.bnn.conftest import blobs

X = torch.linspace(-1, 1, 12)[:, None]
HALVES = torch.arange(12) % 2
QUICK = {"epochs": 1, "batch": 6}


class TestTargets:
    @pytest.mark.parametrize("y", [HALVES, HALVES.float(), HALVES.bool(), HALVES[:, None], HALVES.to(torch.int32)])
    def test_zeros_and_ones_of_any_type_are_bernoulli_targets(self, y):
        fitted = BNN.fit(nn.Linear(1, 1), X, y, likelihood="bernoulli", **QUICK)
        same = BNN.fit(nn.Linear(1, 1), X, HALVES.float(), likelihood="bernoulli", **QUICK)
        assert fitted.posterior.log_predictive(fitted.posterior.outputs(X), HALVES).isfinite().all()
        assert fitted.posterior.loc.shape == same.posterior.loc.shape

    @pytest.mark.parametrize("likelihood", ["gaussian", None])
    def test_a_column_is_read_as_one_target_per_item(self, likelihood):
        """Broadcast against outputs ``[n]`` a column would be n × n targets."""
        network, y = nn.Linear(1, 1), X[:, 0].sin()
        fitted = [BNN.fit(network, X, targets, likelihood=likelihood, **QUICK) for targets in (y, y[:, None])]
        torch.testing.assert_close(fitted[0].posterior.loc, fitted[1].posterior.loc, atol=0, rtol=0)

    def test_integer_counts_are_poisson_targets(self):
        fitted = BNN.fit(nn.Linear(1, 1), X, torch.arange(12), likelihood="poisson", **QUICK)
        assert fitted.posterior.log_predictive(fitted.posterior.outputs(X), torch.arange(12)).isfinite().all()

    @pytest.mark.parametrize(
        ("likelihood", "y", "message"),
        [
            ("bernoulli", 2 * HALVES, "bernoulli targets are 0 and 1, but 6 of 12 are not, such as 2"),
            ("bernoulli", HALVES + 0.5, "such as 0.5"),
            ("poisson", HALVES - 1, "poisson targets are counts 0, 1, 2, …, but 6 of 12 are not, such as -1"),
            ("poisson", HALVES + 0.5, "such as 0.5"),
            ("categorical", HALVES.float(), "categorical targets are classes"),
            ("gaussian", X.expand(12, 3), "the network has 1 outputs, but the gaussian likelihood reads 3"),
            ("gaussian", X.expand(12, 3)[None], "y has shape 1×12×3: give one target per item, shape n, n×1 or n×d"),
            ("gaussian", X[:5, 0], "12 items and 5 targets"),
            ("gaussian", X[:, 0].log(), "the targets hold NaN or infinite numbers"),
            ("gaussian", ["ant"] * 12, "gaussian targets are real numbers, but y holds names, such as ant"),
        ],
    )
    def test_others_are_refused(self, likelihood, y, message):
        with pytest.raises(UserError, match=message) as error:
            BNN.fit(nn.Linear(1, 1 if likelihood != "categorical" else 2), X, y, likelihood=likelihood)
        assert "\n" not in str(error.value)


class TestNetworks:
    @pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
    def test_outputs_that_the_likelihood_would_ignore_are_refused(self, likelihood):
        with pytest.raises(UserError, match=f"the network has 2 outputs, but the {likelihood} likelihood reads 1"):
            BNN.fit(nn.Linear(1, 2), X, HALVES.float(), likelihood=likelihood)

    @pytest.mark.parametrize("weights", ["all", "last"])
    def test_one_without_parameters_is_refused(self, weights):
        with pytest.raises(UserError, match="vanilla: no parameter of the network is random"):
            BNN.fit(nn.Flatten(), X, X[:, 0], weights=weights)

    def test_outputs_without_a_dimension_of_their_own_are_refused(self):
        with pytest.raises(UserError, match="give it a vector of outputs"):
            BNN.fit(nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)), X, X[:, 0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x, y + 1), "labels from 1 to 3, but the network has outputs for 0 to 2"),
            (lambda x, y: (x, y - 1), "labels from -1"),
            (lambda x, y: (x.index_fill(0, torch.tensor([3, 4]), torch.nan), y), "2 of 200 items hold NaN"),
            (lambda x, y: (x[:, :2], y), "cannot take items of shape 2"),
            (lambda x, y: (x[:0], y[:0]), "0 items and 0 targets"),
        ],
    )
    def test_bad_data_is_named(self, change, message):
        with pytest.raises(UserError, match=message):
            BNN.fit(nn.Linear(4, 3), *change(*blobs()))


def test_likelihoods_are_called_by_their_names():
    assert [likelihood_name(kind()) for kind in LIKELIHOODS.values()] == list(LIKELIHOODS)
