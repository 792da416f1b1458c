"""SWAG: its moments recomputed, the stationary covariance of SGD on a quadratic loss, resuming, what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems
from data.regression import linear_posterior
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.bnn import BNN
from inference.bnn.draw import own_epochs
from inference.bnn.fitting import Recipe, fit_posterior, prepare
from inference.bnn.posteriors.swag import MOMENTUM, SwagCollection
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state
from inference.runs.training import Loop, train
from models.bayesian.weight_priors import GaussianWeightPrior
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from tests.inference.bnn.conftest import blobs, items


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def recipe(**settings) -> Recipe:
    chosen = {"posteriors": 2, "epochs": 2, "iterates": 5, "rank": 3} | settings
    prior = GaussianWeightPrior(1.0)
    return Recipe(Algorithm.SWAG, 1.0, CategoricalLikelihood(), prior, settings=FitSettings(**chosen))


class TestMoments:
    @pytest.mark.parametrize("seen", [2, 5])
    def test_are_those_of_the_iterates(self, float64, network, seen):
        """Fewer and more iterates than columns; far from zero, where squares would lose the variance."""
        collection = SwagCollection(prepare(network, items(30), recipe()))
        iterates = 1e4 + 1e-3 * torch.randn(seen, 2, collection.start.shape[1])
        for number, weights in enumerate(iterates):
            collection.record(weights, number % collection.columns)
        posterior = collection.posterior()
        torch.testing.assert_close(posterior.loc, iterates.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(2 * (2 * posterior.log_scale).exp(), iterates.var(0, correction=0), rtol=1e-6, atol=0)
        running = iterates.cumsum(0) / torch.arange(1, seen + 1)[:, None, None]
        last = (iterates - running)[-3:]
        low_rank = torch.einsum("skp,skq->kpq", last, last) / (len(last) - 1)
        torch.testing.assert_close(2 * posterior.factor @ posterior.factor.mT, low_rank, rtol=1e-6, atol=1e-12)


class TestLinearRegression:
    """A quadratic loss, on which the covariance of SGD with momentum is known after every step.

    With δ = w − w_MAP and velocity v a step is v ← μ v + g, δ ← δ − η v, where g is the mean gradient of B items drawn with
    replacement: E g = H δ, and its covariance is that of the items' gradients x (xᵀδ + r)/σ² over B. So the covariance of
    (δ, v), zero at first, goes through a linear map at each step.
    """

    NOISE, SCALE, BATCH, STEP, ITERATES = 0.5, 1.5, 4, 0.03, 25

    def covariances(self, x: Tensor, mode: Tensor, y: Tensor) -> Tensor:
        """Of δ at each iterate, ``[iterates, d, d]``."""
        n, d = x.shape
        data, residual = x.T @ x / self.NOISE**2 / n, x @ mode - y
        hessian, bias = data + torch.eye(d) / self.SCALE**2 / n, x.T @ residual / self.NOISE**2 / n
        inject = torch.cat([-self.STEP / d * torch.eye(d), torch.eye(d)])  # weights in units of 1/√fan-in: steps of 1/fan-in
        move = inject @ torch.cat([hessian, MOMENTUM * torch.eye(d)], 1)
        move[:d, :d] += torch.eye(d)
        covariance, found = torch.zeros(2 * d, 2 * d), []
        for _ in range(self.ITERATES * (n // self.BATCH)):
            delta = covariance[:d, :d]
            squares = ((x @ delta) * x).sum(-1) + residual**2
            gradients = (x * squares[:, None]).T @ x / self.NOISE**4 / n - data @ delta @ data - bias[:, None] * bias
            covariance = move @ covariance @ move.T + inject @ (gradients / self.BATCH) @ inject.T
            found.append(covariance[:d, :d])
        return torch.stack(found[n // self.BATCH - 1 :: n // self.BATCH])

    def test_the_iterates_spread_as_the_theory_of_sgd_says(self, float64, tmp_path):
        """Posteriors side by side, each with steps of its own, from the exact mode."""
        x = torch.randn(24, 3) @ torch.tensor([[1.0, 0.6, 0], [0, 0.8, 0], [0, 0, 1]])
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + self.NOISE * torch.randn(24)
        mode = linear_posterior(x[None], y[None], torch.zeros(3), torch.full((3,), self.SCALE), self.NOISE)[0][0]
        many = {"posteriors": 100, "batch": self.BATCH, "iterates": self.ITERATES, "step_size": self.STEP}
        job = replace(recipe(**many), likelihood=GaussianLikelihood(self.NOISE, learned=False))
        job = replace(job, prior=GaussianWeightPrior(self.SCALE))
        trained = prepare(nn.Linear(3, 1, bias=False), LabelledItems(x, y, ()), job)
        trained.objective.guide.place(mode.expand(100, 3))
        collection = SwagCollection(trained)
        train(collection, Loop("cpu"), RunFolder(tmp_path), "swag", epochs=self.ITERATES, every=self.ITERATES)
        posterior, expected = collection.posterior(), self.covariances(x, mode, y)
        assert float(expected[-1].trace() / expected[-5].trace()) == pytest.approx(1, abs=0.05), "stationary"
        around_mode = 2 * (2 * posterior.log_scale).exp() + (posterior.loc - mode).square()
        error = around_mode.std(0) / len(around_mode) ** 0.5
        off = (around_mode.mean(0) - expected.mean(0).diagonal()) / error
        assert float(off.abs().max()) < 4
        assert float((error / around_mode.mean(0)).max()) < 0.05


class TestFit:
    def test_a_broken_one_ends_as_an_unbroken_one_and_its_curve_goes_on(self, network, tmp_path, monkeypatch):
        data, loop = items(60), Loop("cpu")
        runs = [RunFolder.create(tmp_path / name, "bnn", "{}") for name in ("whole", "broken")]
        whole = fit_posterior(network, data, recipe(), loop=loop, run=runs[0], watch=data)
        with monkeypatch.context() as patch:
            record = SwagCollection.record

            def breaks(self, weights, column):
                if self.current_epoch == 3:
                    raise OSError("killed")
                record(self, weights, column)

            patch.setattr(SwagCollection, "record", breaks)
            with pytest.raises(OSError, match="killed"):
                fit_posterior(network, data, recipe(), loop=loop, run=runs[1])
        resumed = fit_posterior(network, data, recipe(), loop=loop, run=runs[1])
        for name in ("loc", "log_scale", "factor"):
            torch.testing.assert_close(getattr(resumed.posterior, name), getattr(whole.posterior, name), atol=0, rtol=0)
        torch.testing.assert_close(resumed.rates, resumed.posterior.rate())
        assert resumed.rate_against == "prior"
        assert own_epochs({Algorithm.SWAG: whole}, runs[0])["swag"]["test/nll"][0] == [1, 2, 3, 4, 5, 6, 7]

    def test_weights_that_are_points_stay_where_training_left_them(self, network, tmp_path):
        run = RunFolder.create(tmp_path / "run", "bnn", "{}")
        job = recipe(weights="last", learning_rate=0.1)
        fitted = fit_posterior(network, items(60), job, loop=Loop("cpu"), run=run).posterior
        assert list(fitted.model.shapes) == ["2.weight", "2.bias"]
        start = prepare(network, items(60), job)
        load_state(start, run.checkpoints / "swag-beta1-start.safetensors")
        torch.testing.assert_close(fitted.model.network[0].weight, start.objective.model.network[0].weight, atol=0, rtol=0)
        assert float((fitted.model.network[0].weight - network[0].weight).detach().abs().max()) > 0, "trained"
        assert float((fitted.loc - start.objective.guide.loc.detach()).abs().min()) > 0


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            ({"rank": 1}, "`rank=1`: swag needs two columns"),
            ({"rank": 9999}, "swag: `rank=9999` is more than the 15 weights that are random"),
            ({"iterates": 1}, "`iterates=1`: must be a whole number, 2 or more"),
            ({"step_size": 0.0}, "`step_size=0.0`: must be a number, above 0"),
            ({"prior_scales": "layer"}, "swag cannot learn its prior: choose `prior_scales=fixed`"),
            ({"beta": 0.1}, "swag has β = 1"),
        ],
    )
    def test_what_it_has_no_meaning_for(self, arguments, wanted):
        with pytest.raises(UserError, match=wanted):
            BNN.fit(nn.Linear(4, 3), *blobs(20), algorithm="swag", epochs=1, **arguments)

    def test_batch_norm(self):
        with pytest.raises(UserError, match="swag: batch norm's running statistics would be those of no draw"):
            BNN.fit(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), *blobs(20), algorithm="swag", epochs=1)

    def test_a_step_size_that_diverges_is_the_one_to_lower(self):
        x = torch.randn(20, 4)
        with pytest.raises(UserError, match="lower `step_size`"):
            BNN.fit(nn.Linear(4, 1), x, x.sum(1), algorithm="swag", epochs=1, iterates=60, batch=5, noise=0.01, step_size=1.0)
