"""β-BNN as a library: scripts of a few lines, checked against known answers.

The functions whose names start with ``script`` are whole programs, but for their data and the reading of their results: the
documentation quotes them.
"""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import inference.bnn.posteriors.chains
from data.errors import UserError
from data.items import LabelledItems
from data.regression import linear_evidence, linear_posterior
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.bnn import BNN
from inference.bnn.checks import as_module, check_sent
from inference.bnn.fitting import Recipe, prepare
from inference.bnn.posterior import WeightPosterior
from inference.bnn.posteriors.laplace import laplace_posterior
from inference.evaluation.predictions import ClassPredictions
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior
from models.likelihoods import GaussianLikelihood, OwnLikelihood
from tests.inference.bnn.conftest import blobs

EXACT = {"epochs": 120, "batch": 40, "particles": 10, "learning_rate": 0.1, "scale_speed": 1.0, "initial_scale": 0.2}


def script_own_network_and_loader(pairs):
    """``pairs``: a ``Dataset`` of (item, class)."""
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    bnn = BNN.fit(network, DataLoader(pairs, batch_size=32), epochs=20, batch=20)
    predicted = bnn.predict(DataLoader(pairs, batch_size=32))
    print(predicted.labels[:5], predicted.probabilities[:5], predicted.mutual_information[:5])
    return predicted


def test_own_network_and_loader(capsys):
    x, y = blobs()
    predicted = script_own_network_and_loader(TensorDataset(x, y))
    assert float((predicted.labels == y).float().mean()) > 0.85
    assert bool((predicted.mutual_information <= predicted.entropy).all())


def script_own_prior(x, y):
    """Bayesian linear regression with a prior of one's own on its P weights."""
    scales = torch.tensor([2.0, 1.0, 0.5])
    prior = dist.Normal(0.0, scales).to_event(1)
    bnn = BNN.fit(nn.Linear(3, 1, bias=False), x, y, prior=prior, noise=0.5, **EXACT)
    return bnn.posterior.loc[0], bnn.posterior.log_scale[0].exp()


def test_own_prior_gives_the_conjugate_posterior(float64):
    """Orthogonal inputs, so that the exact posterior is itself mean-field."""
    x = torch.linalg.qr(torch.randn(40, 3)).Q * torch.tensor([4.0, 2.0, 1.0])
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(40)
    mean, covariance = linear_posterior(x[None], y[None], torch.zeros(3), torch.tensor([2.0, 1.0, 0.5]), 0.5)
    loc, scale = script_own_prior(x, y)
    torch.testing.assert_close(loc, mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(scale, covariance[0].diagonal().sqrt(), atol=0, rtol=0.05)


def script_two_outputs(x, y):
    """``y``: ``[n, 2]``, two targets with a known noise each."""
    bnn = BNN.fit(nn.Linear(3, 2, bias=False), x, y, noise=[0.5, 2.0], prior_scale=1.0, **EXACT)
    predicted = bnn.predict(x, num_samples=4000)
    print(predicted.mean[0], predicted.function_deviation[0], predicted.noise_deviation[0], predicted.lower[0])
    return bnn, predicted


def test_two_outputs_are_two_independent_regressions(float64, capsys):
    x = torch.linalg.qr(torch.randn(40, 3)).Q * torch.tensor([4.0, 2.0, 1.0])
    noise = torch.tensor([0.5, 2.0])
    y = x @ torch.randn(3, 2) + noise * torch.randn(40, 2)
    bnn, predicted = script_two_outputs(x, y)
    prior, scores = (torch.zeros(3), torch.ones(3)), bnn.posterior.scores(items_of(x, y), num_samples=2000)
    nll = 0.0
    for d in range(2):
        mean, covariance = (part[0] for part in linear_posterior(x[None], y[None, :, d], *prior, float(noise[d])))
        torch.testing.assert_close(bnn.posterior.loc.view(2, 3)[d], mean, atol=0.03, rtol=0)
        torch.testing.assert_close(bnn.posterior.log_scale.exp().view(2, 3)[d], covariance.diagonal().sqrt(), atol=0, rtol=0.05)
        variance = ((x @ covariance) * x).sum(-1)
        torch.testing.assert_close(predicted.function_deviation[:, d], variance.sqrt(), atol=0.003, rtol=0.1)
        assert predicted.noise_deviation[:, d].tolist() == pytest.approx([float(noise[d])] * 40, rel=1e-5)
        total = (variance + noise[d] ** 2).sqrt()
        torch.testing.assert_close(predicted.upper[:, d], x @ mean + 1.6449 * total, atol=0.08, rtol=0.01)
        nll -= float(dist.Normal(x @ mean, total).log_prob(y[:, d]).mean())
    assert scores["nll"] == pytest.approx(nll, abs=0.02)


def script_save_and_load(x, y, path):
    """Fit here, predict elsewhere: ``to("cuda")`` where there is a GPU."""
    make = lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))  # noqa: E731
    bnn = BNN.fit(make(), x, y, epochs=3)
    bnn.save(path)
    there = BNN.load(path, make()).to(torch.float64)
    return bnn.predict(x), there.predict(x)


def test_predictions_elsewhere_are_the_same(tmp_path):
    here, there = script_save_and_load(*blobs(60), tmp_path / "bnn.safetensors")
    assert there.probabilities.dtype == torch.float64
    for name in ("probabilities", "entropy", "mutual_information", "lower", "upper"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name).double(), atol=1e-6, rtol=0)
    assert float(here.mutual_information.max()) > 1e-3, "something is random"


def items_of(x, y):
    return LabelledItems(x, y, ())


class TestPriors:
    def objective(self, prior, x, y):
        recipe = Recipe(Algorithm.VANILLA, 1.0, GaussianLikelihood(0.5, learned=False), prior, settings=FitSettings())
        return prepare(nn.Linear(3, 1), items_of(x, y), recipe).objective

    def test_a_normal_is_our_gaussian(self, float64):
        x, y = torch.randn(20, 3), torch.randn(20)
        losses = []
        for prior in (GaussianWeightPrior(0.7), *map(as_module, (dist.Normal(0.0, 0.7), torch.distributions.Normal(0.0, 0.7),
                                                                 dist.Normal(0.0, 0.7).expand([4]).to_event(1)))):  # fmt: skip
            torch.manual_seed(0)
            losses.append(float(self.objective(prior, x, y)(x, y).detach()))
        assert losses[1:] == pytest.approx([losses[0]] * 3, rel=1e-12)

    def test_a_rate_without_a_closed_form_is_that_of_quadrature(self, float64):
        """E_q log q − log p of one weight, summed over the four."""
        own = dist.StudentT(3.0, 0.0, 0.5)
        x, y = torch.randn(20, 3), torch.randn(20)
        objective = self.objective(as_module(own), x, y)
        with torch.no_grad():
            mean, scale = objective.guide.loc[0], objective.guide.log_scale[0].exp()
            q = dist.Normal(mean, scale)
            grid = torch.linspace(-12, 12, 20_001)[:, None] * scale + mean
            density = q.log_prob(grid).exp()
            exact = float(torch.trapezoid(density * (q.log_prob(grid) - own.log_prob(grid)), grid, dim=0).sum())
            rates = torch.stack([objective.terms(x, y).rate for _ in range(600)])
            error = float(rates.std()) / 600**0.5
            assert float(rates.mean()) == pytest.approx(exact, abs=4 * error)
            posterior = BNN.fit(nn.Linear(3, 1), x, y, prior=own, noise=0.5, epochs=2).posterior
            q = dist.Normal(posterior.loc[0], posterior.log_scale[0].exp())
            grid = torch.linspace(-12, 12, 20_001)[:, None] * q.scale + q.loc
            exact = torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - own.log_prob(grid)), grid, dim=0).sum()
            assert float(posterior.rate()) == pytest.approx(float(exact), abs=0.1 * float(exact))
            assert float(posterior.rate()) == float(posterior.rate()), "seeded"

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            (dist.Gamma(1.0, 1.0), "`prior`: Gamma is not over all real numbers"),
            (dist.Normal(torch.zeros(2, 3), 1.0), "`prior`: Normal has shape 2×3: it must be of one weight, or of all"),
            (dist.Normal(0.0, torch.ones(7)), "vanilla: the prior Normal is over 7 weights, but 15 are random"),
            (3, "unknown prior '3'"),
        ],
    )
    def test_others_are_refused_in_one_line(self, prior, message):
        with pytest.raises(UserError, match=message) as error:
            BNN.fit(nn.Linear(4, 3), *blobs(30), prior=prior)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("algorithm", ["low-rank", "swag", "nuts", "last-layer", "fixed-prior"])
    def test_every_algorithm_that_takes_a_prior_takes_it(self, algorithm, monkeypatch):
        monkeypatch.setattr(inference.bnn.posteriors.chains, "SEARCH", 20)
        options = {
            "epochs": 2,
            "iterates": 2,
            "rank": 2,
            "chains": 2,
            "warmup": 4,
            "draws": 4,
            "prior": dist.StudentT(1.5, 0.0, 1.0),
        }
        bnn = BNN.fit(nn.Linear(4, 3), *blobs(30), algorithm=algorithm, **options)
        assert bool(bnn.posterior.sample(4).isfinite().all())
        if algorithm != "nuts":
            assert bool(bnn.rates.isfinite().all())


class TestLikelihoods:
    def test_a_function_is_one(self):
        """Outliers move a Gaussian mean, and not that of a Student t."""
        x, noise = torch.ones(60, 1), 0.1 * torch.randn(60)
        y = noise.index_fill(0, torch.arange(6), 30.0)
        robust = lambda f: dist.StudentT(1.0, f[..., 0], 0.1)  # noqa: E731
        options = {"epochs": 40, "batch": 60, "learning_rate": 0.2}
        fits = [BNN.fit(nn.Linear(1, 1), x, y, **given, **options) for given in ({"likelihood": robust}, {"noise": 0.1})]
        centres = [float(fit.posterior.outputs(x[:1]).mean()) for fit in fits]
        assert centres[0] == pytest.approx(0.0, abs=0.3)
        assert centres[1] > 2

    def test_one_with_noise_that_depends_on_the_input(self):
        x = torch.linspace(-1, 1, 200)[:, None]
        y = torch.where(x[:, 0] < 0, 0.05, 1.0) * torch.randn(200)
        network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))
        heteroscedastic = lambda f: dist.Normal(f[..., 0], f[..., 1].exp())  # noqa: E731
        bnn = BNN.fit(network, x, y, likelihood=heteroscedastic, epochs=30, batch=40, learning_rate=0.1)
        noise = bnn.predict(torch.tensor([[-0.8], [0.8]])).noise_deviation
        assert float(noise[0]) < 0.2
        assert float(noise[1]) > 0.6

    def test_classes_by_a_function_are_predicted_as_classes(self):
        x, y = blobs(60)
        bnn = BNN.fit(nn.Linear(4, 3), x, y, likelihood=lambda f: dist.Categorical(logits=f), epochs=20, batch=20)
        predicted = bnn.predict(x)
        assert isinstance(predicted, ClassPredictions)
        assert predicted.probabilities.shape == (60, 3)
        assert bnn.posterior.scores(items_of(x, y))["accuracy"] > 0.8
        assert "probabilities" in bnn.posterior.to_arviz(x, y, num_samples=8)["predictions"]

    @pytest.mark.parametrize(
        ("likelihood", "message"),
        [
            (lambda f: dist.Normal(f, 1.0), r"batch_shape 1×2×2 for 1×2 items: take outputs\[..., 0\], or end in"),
            (
                lambda f: dist.Normal(f, 1.0).to_event(1),
                "y has shape n, but the OwnLikelihood likelihood is of targets of shape n×2",
            ),
            (lambda f: f, "`likelihood` must give a Pyro distribution, not Tensor"),
            (lambda f: dist.Normal(f[..., 5], 1.0), "`likelihood` cannot take outputs of shape 1×2×2"),
            (lambda f: dist.Gamma(f[..., 0].exp(), 1.0), "OwnLikelihood targets are numbers that the distribution can give"),
            ("gauss", "unknown likelihood 'gauss': choose .*, or give a function"),
        ],
    )
    def test_bad_ones_are_named_in_one_line(self, likelihood, message):
        with pytest.raises(UserError, match=message) as error:
            BNN.fit(nn.Linear(4, 2), torch.randn(12, 4), -torch.rand(12), likelihood=likelihood)
        assert "\n" not in str(error.value)

    def test_what_cannot_go_to_other_processes_is_named(self):
        options = {"likelihood": lambda f: dist.Normal(f[..., 0], 1.0), "devices": 2, "device": "cpu"}
        with pytest.raises(
            UserError, match=r"`likelihood` cannot be sent to other processes .*: define it at the top"
        ) as error:
            BNN.fit(nn.Linear(4, 1), torch.randn(12, 4), torch.randn(12), **options)
        assert "\n" not in str(error.value)
        check_sent(prior=as_module(dist.StudentT(3.0, 0.0, 1.0)), likelihood=OwnLikelihood(robust))


def robust(outputs):
    return dist.StudentT(4.0, outputs[..., 0], 0.1)


class TestSeveralOutputs:
    X, Y = torch.randn(40, 3), torch.randn(40, 2)

    def test_noise_is_learned_for_each(self):
        y = self.Y * torch.tensor([0.1, 3.0])
        bnn = BNN.fit(nn.Linear(3, 2), self.X, y, epochs=150, batch=40, learning_rate=0.2, prior_scale=0.01, posteriors=2)
        noise = bnn.predict(self.X[:1]).noise_deviation[0]
        torch.testing.assert_close(noise, y.square().mean(0).sqrt(), atol=0, rtol=0.1)

    @pytest.mark.parametrize("noise", [[0.1], [0.1, -1.0], [0.1, 0.2, 0.3], "wide", torch.ones(2, 2)])
    def test_bad_noise_is_named(self, noise):
        with pytest.raises(UserError, match=r"`noise=.*must be a positive number") as error:
            BNN.fit(nn.Linear(3, 2), self.X, self.Y, noise=noise)
        assert "\n" not in str(error.value)

    def test_laplace_of_unequal_noises_is_exact(self, float64):
        pytest.importorskip("laplace")
        noise, x, prior = torch.tensor([0.5, 3.0]), self.X.double(), (torch.zeros(3), torch.ones(3))
        y, known = x @ torch.randn(3, 2) + noise * torch.randn(40, 2), GaussianLikelihood(noise, outputs=2, learned=False)
        exact = [[t[0] for t in linear_posterior(x[None], y[None, :, d], *prior, float(noise[d]))] for d in range(2)]
        model = BayesianNetwork(nn.Linear(3, 2, bias=False), GaussianWeightPrior(1.0), known, num_data=40)
        points = WeightPosterior(model, torch.cat([mean for mean, _ in exact])[None], None)
        posterior = laplace_posterior(points, items_of(x, y))
        draws = posterior.sample(20_000).view(-1, 2, 3)
        for d, (_, covariance) in enumerate(exact):
            torch.testing.assert_close(draws[:, d].T.cov(), covariance, atol=3e-4 * float(noise[d]) ** 2, rtol=0.1)
        evidence = sum(float(linear_evidence(x[None], y[None, :, d], *prior, float(noise[d]))) for d in range(2))
        assert posterior.evidence() == pytest.approx(evidence, abs=1e-6)

    def test_laplace_of_the_last_layer_takes_one_noise(self):
        with pytest.raises(UserError, match="of the last layer takes one known noise for all outputs"):
            BNN.fit(nn.Linear(3, 2), self.X, self.Y, algorithm="laplace", weights="last", noise=[0.1, 0.2])

    def test_arviz_names_them(self):
        bnn = BNN.fit(nn.Linear(3, 2), self.X, self.Y, epochs=2)
        saved = bnn.posterior.to_arviz(self.X[:5], self.Y[:5], train=items_of(self.X, self.Y), num_samples=16)
        assert saved["observed_data"]["y"].dims == ("item", "output")
        assert saved["log_likelihood"]["y"].dims == ("chain", "draw", "item")
        assert saved["posterior_predictive"]["y"].shape == (4, 4, 40, 2)
        assert saved["predictions"]["mean"].shape == (4, 4, 5, 2)
