"""β-BNN by its Python interface: the exact posterior of linear regression, every algorithm, bad arguments."""

import inspect
import math
from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from data.errors import UserError
from data.items import LabelledItems
from data.regression import linear_evidence, linear_posterior
from guides.mean_field import MeanFieldGuide
from inference.bnn.algorithms import Algorithm, FitSettings, Plan
from inference.bnn.bnn import BNN
from inference.bnn.fitting import Recipe, build_objective, prepare
from inference.elbo import RateDistortionELBO
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, LaplaceWeightPrior, MixtureWeightPrior
from models.bayesian.weight_scales import PriorScales
from models.distributions.diagonal import DiagonalGaussian
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood
from tests.conftest import descend
from tests.inference.bnn.conftest import blobs, items


@pytest.fixture
def one_round(monkeypatch):
    """Mixtures of two posteriors in one round, which options refuse for what its rates are against."""
    monkeypatch.setattr(FitSettings, "plan", lambda settings, way: Plan(2, 1, settings.epochs, online=way is Algorithm.ONLINE))


class TestLinearRegression:
    """A one-layer network without bias, N(0, s²) prior and known noise: everything is known in closed form."""

    NOISE, SCALE = 0.5, 1.5

    def fit(self, x, y):
        likelihood = GaussianLikelihood(self.NOISE, learned=False)
        model = BayesianNetwork(nn.Linear(3, 1, bias=False), GaussianWeightPrior(self.SCALE), likelihood)
        guide = MeanFieldGuide(torch.zeros(1, 3), 0.1)
        options = {"num_particles": 200, "vectorize_particles": True, "max_plate_nesting": 2}
        objective = RateDistortionELBO(beta=1.0, **options)(model, guide)
        descend(objective, x, y)
        prior = torch.zeros(3), torch.full((3,), self.SCALE)
        mean, covariance = linear_posterior(x[None], y[None], *prior, self.NOISE)
        torch.testing.assert_close(guide.loc[0].detach(), mean[0], atol=0.01, rtol=0)
        return objective, covariance[0], linear_evidence(x[None], y[None], *prior, self.NOISE)[0]

    def test_posterior_and_evidence_are_exact(self, float64):
        """Orthogonal inputs, so that the exact posterior is itself mean-field."""
        x = torch.linalg.qr(torch.randn(30, 3)).Q * torch.tensor([4.0, 2.0, 1.0])
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + self.NOISE * torch.randn(30)
        objective, covariance, evidence = self.fit(x, y)
        variance = (2 * objective.guide.log_scale[0].detach()).exp()
        torch.testing.assert_close(variance, covariance.diagonal(), atol=0, rtol=0.03)
        with torch.no_grad():
            loss = torch.stack([objective(x, y) for _ in range(50)]).mean()
        assert float(-loss) == pytest.approx(float(evidence), abs=0.02)

    def test_correlated_inputs_give_the_known_mean_field_variances(self, float64):
        """The best diagonal Gaussian has the exact mean and the variances 1/diag(precision)."""
        x = torch.randn(40, 3) @ torch.tensor([[1.0, 0.8, 0], [0, 0.6, 0], [0, 0, 1]])
        objective, covariance, _ = self.fit(x, torch.randn(40))
        variance = (2 * objective.guide.log_scale[0].detach()).exp()
        torch.testing.assert_close(variance, 1 / torch.linalg.inv(covariance).diagonal(), atol=0, rtol=0.03)


class TestEmpiricalBayes:
    """The same network with inputs X = c Q, orthonormal Q: it sees the estimates ŵ = Xᵀy/c² ~ N(w, v), v = noise²/c², and the
    evidence is greatest where s² = mean(ŵ²) − v, a mean over the weights that share a prior N(0, s²)."""

    NOISE, C = 0.5, 2.0

    def fit(self, weights: torch.Tensor, **options):
        x = self.C * torch.linalg.qr(torch.randn(40, len(weights))).Q
        y = x @ weights + self.NOISE * torch.randn(40)
        chosen = {"epochs": 250, "batch": 40, "particles": 20, "noise": self.NOISE, "learning_rate": 0.1, "scale_speed": 1.0}
        chosen |= options
        return BNN.fit(nn.Linear(len(weights), 1, bias=False), x, y, **chosen), x, y

    def test_a_learned_scale_posterior_and_evidence_are_exact(self, float64):
        fitted, x, y = self.fit(0.7 * torch.randn(12), posteriors=2)
        variance, estimates = self.NOISE**2 / self.C**2, x.T @ y / self.C**2
        scale = (estimates.square().mean() - variance).sqrt()
        prior = fitted.posterior.model.prior(12)
        torch.testing.assert_close(prior.variance.sqrt(), scale.expand(2, 1, 12), atol=0, rtol=0.02)
        shrink = scale**2 / (scale**2 + variance)
        for k in range(2):
            torch.testing.assert_close(fitted.posterior.loc[k], shrink * estimates, atol=0.02, rtol=0)
        spread = (shrink * variance).sqrt()
        torch.testing.assert_close(fitted.posterior.log_scale.exp(), spread.expand(2, 12), atol=0, rtol=0.05)
        evidence = linear_evidence(x[None], y[None], torch.zeros(12), scale.expand(12), self.NOISE)[0]
        distortion = fitted.posterior.scores(LabelledItems(x, y, ()), num_samples=4000)["distortion"]
        assert distortion + float(fitted.rates.mean()) == pytest.approx(-float(evidence), abs=0.15)

    @pytest.mark.slow
    def test_a_scale_for_each_input_is_exact_and_silences_what_explains_nothing(self, float64):
        fitted, x, y = self.fit(torch.tensor([2.0, -1.0, 0.0, 0.0, 0.5]), prior_scales="input", epochs=400)
        excess = (x.T @ y / self.C**2).square() - self.NOISE**2 / self.C**2
        assert bool((excess < 0).any())
        assert bool((excess > 0).any())
        scales = fitted.posterior.model.prior(5).variance.sqrt().detach()
        torch.testing.assert_close(scales[excess > 0], excess[excess > 0].sqrt(), atol=0, rtol=0.05)
        assert float(scales[excess < 0].max()) < 0.02

    @pytest.mark.parametrize("family", ["laplace", "spike-and-slab"])
    @pytest.mark.slow
    def test_other_families_end_where_the_rate_is_smallest(self, family, float64):
        """At the optimum of the scale, which for Laplace is E|w|, no other scale gives this posterior a smaller rate."""
        fitted, *_ = self.fit(torch.randn(6), prior=family, epochs=500, particles=5)
        prior, rates = fitted.posterior.model.prior, {}
        for shift in (-0.2, 0.0, 0.2):
            with torch.no_grad():
                prior.scales.log_scale += shift
                rates[shift] = float(fitted.posterior.rate())
                prior.scales.log_scale -= shift
        assert rates[0.0] < min(rates[-0.2], rates[0.2])
        if family == "laplace":
            draws = fitted.posterior.sample(20_000).abs().mean()
            assert float(prior.scales.log_scale.detach().exp()) == pytest.approx(float(draws), rel=0.05)

    def test_each_posterior_learns_a_prior_of_its_own_where_it_says_so(self):
        for kind, groups in {"layer": 2, "input": 5, "fan-in": 0, "fixed": 0}.items():
            fitted = BNN.fit(nn.Linear(4, 3), *blobs(30), prior_scales=kind, posteriors=3, epochs=2)
            prior = fitted.posterior.model.prior
            assert sum(p.numel() for p in prior.parameters()) == 3 * groups
            assert prior.sees_data == bool(groups)
            expected = {"fan-in": 0.5, "fixed": 1.0}.get(kind)
            if expected:
                torch.testing.assert_close(prior(15).variance.sqrt(), torch.full((15,), expected))

    @pytest.mark.parametrize("algorithm", ["vanilla", "low-rank"])
    def test_side_by_side_each_is_what_it_would_be_alone(self, algorithm, float64):
        """What one of two learns of other labels leaves the other, its prior and its rate as they were."""
        (x, y), network, settings = blobs(30), nn.Linear(4, 3), FitSettings(posteriors=2)
        recipe = Recipe(Algorithm(algorithm), 1.0, CategoricalLikelihood(), None, PriorScales.INPUT, settings)
        fits = {}
        for name, labels in {"same": torch.stack([y, y]), "other": torch.stack([y, y.flip(0)])}.items():
            module = prepare(network, LabelledItems(x, y, ()), recipe)
            torch.manual_seed(0)
            optimizer = torch.optim.Adam(module.parameters(), 0.05)
            for _ in range(20):
                optimizer.zero_grad()
                module.objective(x.expand(2, *x.shape), labels).backward()
                optimizer.step()
            posterior = module.posterior()
            fits[name] = [posterior.loc, posterior.log_scale, posterior.model.prior(15).variance[:, 0], posterior.rate()]
        for same, other in zip(fits["same"], fits["other"], strict=True):
            torch.testing.assert_close(same[0], other[0], rtol=0, atol=0)
            assert bool((same[1] != other[1]).any())

    def test_a_mixture_starts_from_the_learned_prior(self, one_round):
        """Until there are posteriors it is that prior; then its other components are. Afterwards nothing more is learned."""
        fitted = BNN.fit(nn.Linear(4, 3), *blobs(60), algorithm="online", posteriors=2, epochs=15, batch=10, beta=1.0)
        mixture = fitted.posterior.model.prior
        assert isinstance(mixture, MixtureWeightPrior)
        assert mixture.begun
        scale = mixture.start(15).variance.sqrt()
        assert float(scale.std()) > 0.01, "learned"
        first = kl_divergence(DiagonalGaussian(fitted.posterior.loc[0], fitted.posterior.log_scale[0]), mixture.start(15))
        assert float(fitted.rates[0]) == pytest.approx(float(first), rel=1e-3)


class TestConvergence:
    def test_a_scale_that_did_not_move_or_went_as_far_as_it_can_is_told(self):
        network, data = nn.Linear(4, 3), blobs(60)
        assert "hardly moved" in BNN.fit(network, *data, epochs=1, learning_rate=1e-4).warning
        assert "as far as Adam lets them" in BNN.fit(network, *data, epochs=6, batch=20, initial_scale=1e-4).warning
        assert BNN.fit(network, *data, epochs=60, batch=20).warning is None
        assert BNN.fit(network, *data, epochs=1, algorithm="deterministic").warning is None


class TestAlgorithms:
    @pytest.mark.slow
    @pytest.mark.parametrize("algorithm", [a for a in Algorithm if a is not Algorithm.NUTS])
    def test_every_algorithm_learns(self, algorithm):
        x, y = blobs()
        network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        options = {"epochs": 20, "rounds": 2, "posteriors": 3, "batch": 20, "learning_rate": 0.01, "seed": 3}
        fitted = BNN.fit(network, x, y, algorithm=algorithm, beta=algorithm.betas((0.1,))[0], **options)
        scores = fitted.posterior.scores(LabelledItems(x, y, ("0", "1", "2")))
        assert scores["accuracy"] > 0.85
        assert fitted.posterior.size == (2 if algorithm is Algorithm.NUTS else 3)
        assert bool(fitted.rates.isnan().all()) == (algorithm in (Algorithm.DETERMINISTIC, Algorithm.LAPLACE))
        expected = {
            Algorithm.DETERMINISTIC: None,
            Algorithm.LAPLACE: None,
            Algorithm.BETA_BNN: "mixture",
            Algorithm.ONLINE: "mixture",
        }
        assert fitted.rate_against == expected.get(algorithm, "prior")

    def test_online_refreshes_after_each_posterior_and_beta_bnn_after_all(self, one_round):
        """With an enormous β nothing is learned after the first round but what the mixture allows: online's second posterior
        may sit on the first, which β-BNN's cannot see before the round ends."""
        x, y = blobs(60)
        network = nn.Linear(4, 3)
        rates = {}
        for algorithm in ("beta-bnn", "online"):
            options = {"epochs": 80, "posteriors": 2, "batch": 60, "prior_scale": 1.0, "learning_rate": 0.1}
            fitted = BNN.fit(network, x, y, algorithm=algorithm, beta=1.0, seed=5, **options)
            rates[algorithm] = fitted.rates
        prior_alone = rates["beta-bnn"]
        torch.testing.assert_close(prior_alone[0], rates["online"][0], rtol=0.05, atol=0)
        assert float(rates["online"][1]) < float(prior_alone[1])

    def test_rate_of_a_second_round_is_at_most_log_k_plus_the_move(self):
        """At large β a posterior stays where the mixture has it: its rate is below log K."""
        x, y = blobs(60)
        options = {"epochs": 60, "rounds": 3, "posteriors": 4, "batch": 20, "learning_rate": 0.01}
        fitted = BNN.fit(nn.Linear(4, 3), x, y, algorithm="beta-bnn", beta=100.0, **options)
        assert float(fitted.rates.max()) < math.log(4) + 1

    @pytest.mark.parametrize("algorithm", [a for a in Algorithm if a is not Algorithm.NUTS])
    def test_a_network_in_double_precision_is_fitted_and_predicts_in_it(self, algorithm):
        if algorithm is Algorithm.LAPLACE:
            pytest.importorskip("laplace")
        x, network = torch.randn(12, 2), nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        options = {"epochs": 2, "rounds": 2, "posteriors": 2, "iterates": 2, "rank": 2}
        fitted = BNN.fit(network, x.double(), x[:, 0], algorithm=algorithm, **options).posterior
        assert fitted.loc.dtype == fitted.outputs(x, num_samples=2).dtype == torch.float64
        assert {parameter.dtype for parameter in fitted.model.parameters()} <= {torch.float64}

    def test_same_seed_same_numbers(self):
        x, y = blobs(60)
        options = {"epochs": 4, "rounds": 2, "posteriors": 2, "algorithm": "online"}
        network = nn.Linear(4, 3)
        first, second = (BNN.fit(network, x, y, seed=0, **options) for _ in range(2))
        torch.testing.assert_close(first.posterior.loc, second.posterior.loc, atol=0, rtol=0)

    def test_likelihood_and_prior_are_copied_not_changed(self):
        x, y = torch.randn(30, 4), torch.randn(30)
        likelihood = GaussianLikelihood(0.5)
        options = {"epochs": 3, "learning_rate": 0.1}
        fitted = BNN.fit(nn.Linear(4, 1), x, y, likelihood=likelihood, **options)
        assert float(likelihood.log_noise.detach().exp()) == pytest.approx(0.5)
        assert float(fitted.posterior.model.likelihood.log_noise.detach().exp()) != pytest.approx(0.5)

    @pytest.mark.parametrize("algorithm", ["beta-bnn", "online"])
    def test_learned_noise_is_each_posteriors_own(self, algorithm):
        """Bootstrap samples of three items differ much, and so do the noises that fit them."""
        x = torch.linspace(-1, 1, 12)[:, None]
        y = x[:, 0].sin() + torch.linspace(0, 2, 12) * torch.randn(12)
        options = {
            "epochs": 40,
            "rounds": 2,
            "posteriors": 3,
            "learning_rate": 0.05,
            "bootstrap_size": 3,
            "initial_scale": 0.01,
        }
        fitted = BNN.fit(nn.Linear(1, 1), x, y, algorithm=algorithm, beta=0.01, **options).posterior
        noise = fitted.observation(fitted.outputs(x, num_samples=6)).scale[:, 0]
        assert len({round(float(n), 4) for n in noise[:3]}) == 3
        torch.testing.assert_close(noise[3:], noise[:3])


class TestRandomSubset:
    @pytest.mark.slow
    def test_the_others_are_points_trained_by_the_same_objective(self, float64):
        """Centred orthogonal inputs, random slopes and a point for the intercept: all three are known."""
        noise, x = 0.5, torch.randn(40, 3)
        x = torch.linalg.qr(x - x.mean(0)).Q * torch.tensor([4.0, 2.0, 1.0])
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + 3 + noise * torch.randn(40)
        options = {"epochs": 300, "initial_scale": 0.2, "particles": 20, "learning_rate": 0.1, "scale_speed": 1.0}
        fitted = BNN.fit(nn.Linear(3, 1), x, y, noise=noise, prior_scale=1.0, weights=["weight"], **options).posterior
        precision = x.square().sum(0) / noise**2 + 1
        torch.testing.assert_close(fitted.loc[0], x.T @ y / noise**2 / precision, atol=0.03, rtol=0)
        torch.testing.assert_close((-2 * fitted.log_scale[0]).exp(), precision, atol=0, rtol=0.1)
        torch.testing.assert_close(fitted.model.network.bias.detach(), y.mean()[None], atol=0.03, rtol=0)

    @pytest.mark.parametrize(
        ("weights", "random"),
        [
            ("last", ["2.weight", "2.bias"]),
            (["*.bias"], ["0.bias", "2.bias"]),
            ("all", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ],
    )
    def test_is_chosen_by_name(self, weights, random):
        network = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))
        fitted = BNN.fit(network, *blobs(20), weights=weights, epochs=1).posterior
        assert list(fitted.model.shapes) == random
        if weights == "last":
            assert list(BNN.fit(network, *blobs(20), algorithm="last-layer", epochs=1).posterior.model.shapes) == random

    def test_unknown_names_are_refused(self):
        with pytest.raises(
            UserError, match=r"`weights=3.\*` is no parameter of the network: choose all, last, or weight, bias"
        ):
            BNN.fit(nn.Linear(4, 3), *blobs(20), weights=["bias", "3.*"])


class TestKnownNoise:
    X, Y = torch.randn(20, 4), torch.randn(20)

    def test_is_not_learned(self):
        likelihood = BNN.fit(nn.Linear(4, 1), self.X, self.Y, noise=0.3, epochs=2).posterior.model.likelihood
        assert float(likelihood.log_noise.exp()) == pytest.approx(0.3)
        assert not list(likelihood.parameters())

    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            ({"noise": -1.0}, "`noise=-1.0` must be a positive number"),
            ({"noise": 0.1, "likelihood": GaussianLikelihood(0.2)}, "of a likelihood by name"),
            ({"noise": 0.1, "likelihood": "poisson"}, "of gaussian targets"),
        ],
    )
    def test_goes_with_gaussian_targets_alone(self, arguments, wanted):
        with pytest.raises(UserError, match=wanted):
            BNN.fit(nn.Linear(4, 1), self.X, self.Y, **arguments)


class TestObjective:
    @pytest.mark.parametrize(("algorithm", "expected"), [(Algorithm.FIXED, 200), (Algorithm.BETA_BNN, 40)])
    def test_a_batch_stands_for_all_items_of_an_epoch(self, algorithm, expected):
        """β weighs the rate against the distortion of n (or n_b) items, not of a batch: else it is off by n/batch."""
        data = items(200)
        settings = FitSettings(bootstrap_size=40, posteriors=2)
        recipe = Recipe(algorithm, 0.5, CategoricalLikelihood(), settings=settings)
        available = settings.items_per_epoch(algorithm, len(data))
        objective, _ = build_objective(nn.Linear(4, 3), recipe, settings.plan(algorithm), num_data=available)
        with torch.no_grad():
            objective.guide.standard_log_scale.fill_(-30)
            count = settings.plan(algorithm).at_once
            x, y = data.items[:5].expand(count, 5, 4).squeeze(0), data.labels[:5].expand(count, 5).squeeze(0)
            terms = objective.terms(x, y)
            per_item = -objective.model.likelihood(objective.model.outputs(x, objective.guide.loc)).log_prob(y).sum() / 5
        torch.testing.assert_close(terms.distortion, expected * per_item)
        torch.testing.assert_close(terms.loss, terms.distortion + 0.5 * terms.rate)


class TestArguments:
    """One line that names arguments, not flags."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"algorithm": "magic"}, "unknown algorithm 'magic': choose vanilla"),
            ({"epoch": 3}, "unknown argument epoch: choose batch, beta_warmup, bootstrap_size, chains"),
            ({"hidden": "3"}, "unknown argument hidden"),
            ({"likelihood": "cauchy"}, "unknown likelihood 'cauchy'"),
            ({"prior": "cauchy"}, "unknown prior 'cauchy'"),
            ({"prior_scale": -1.0}, "`prior_scale=-1.0` must be a positive number"),
            ({"prior_scale": "wide"}, "`prior_scale='wide'` must be a positive number"),
            ({"noise": torch.tensor(0.1)}, r"`noise=tensor\(0.1000\)` must be a positive number"),
            ({"devices": 0}, "`devices=0` must be a whole number, 1 or more"),
            ({"prior": GaussianWeightPrior(), "prior_scale": 2.0}, "`prior_scale=2` is of a prior by name"),
            ({"prior": GaussianWeightPrior(), "prior_scales": "input"}, "`prior_scales=input` is of a prior by name"),
            ({"prior_scales": "unit"}, "unknown prior_scales 'unit': choose layer, input, fan-in, fixed"),
            ({"algorithm": "laplace", "prior_scales": "layer"}, "laplace cannot learn its prior: choose `prior_scales=fixed`"),
            ({"algorithm": "fixed-prior", "prior_scales": "layer"}, r"its own \(N\(0, I\)\): leave out `prior_scales=layer`"),
            ({"prior": GaussianWeightPrior(torch.ones(7))}, "vanilla: the prior does not fit the network's 15 weights"),
            ({"beta": -1.0}, "`beta=-1.0` must be"),
            ({"beta": 0.1}, "vanilla has β = 1: leave out `beta=0.1`"),
            ({"algorithm": "deterministic", "beta": 1.0}, "deterministic has β = 0"),
            ({"epochs": 0}, "`epochs=0`: must be a whole number, above 0"),
            ({"algorithm": "online", "epochs": 4, "rounds": 3}, "online: `epochs=4` must be a multiple of `rounds=3`"),
            ({"algorithm": "beta-bnn", "bootstrap_size": 201}, "`bootstrap_size=201` items from 200: n_b must not exceed n"),
            ({"device": "tpu"}, "unknown device 'tpu'"),
            ({"algorithm": "nuts", "weights": "last"}, "nuts samples all weights: leave out `weights=last`"),
            ({"algorithm": "deterministic", "weights": ["bias"]}, "deterministic has points alone: leave out `weights=bias`"),
            ({"algorithm": "last-layer", "weights": ["bias"]}, "is of the last layer's weights: leave out `weights=bias`"),
        ],
    )
    def test_bad_ones_are_named(self, arguments, message):
        with pytest.raises(UserError, match=message) as error:
            BNN.fit(nn.Linear(4, 3), *blobs(), **arguments)
        assert "--" not in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("algorithm", ["fixed-prior", "beta-bnn", "online", "deterministic"])
    @pytest.mark.parametrize("given", [{"prior": "laplace"}, {"prior_scale": 2.0}, {"prior": LaplaceWeightPrior()}])
    def test_a_prior_for_an_algorithm_with_its_own_is_refused(self, algorithm, given):
        if "prior_scale" in given and algorithm in ("beta-bnn", "online"):
            return  # the Gaussian that they start from
        if algorithm == "fixed-prior" and not isinstance(given.get("prior"), str | None):
            fitted = BNN.fit(nn.Linear(4, 3), *blobs(30), algorithm=algorithm, epochs=1, **given)
            assert isinstance(fitted.posterior.model.prior, LaplaceWeightPrior)
            return
        with pytest.raises(UserError, match=f"{algorithm} has a prior of its own"):
            BNN.fit(nn.Linear(4, 3), *blobs(), algorithm=algorithm, **given)

    def test_a_folder_with_a_run_is_refused(self, tmp_path):
        BNN.fit(nn.Linear(4, 3), *blobs(30), epochs=1, out=tmp_path / "run")
        with pytest.raises(UserError, match="already holds a run: choose another `out`"):
            BNN.fit(nn.Linear(4, 3), *blobs(30), epochs=1, out=tmp_path / "run")

    def test_nothing_is_left_of_a_bad_call(self, tmp_path):
        with pytest.raises(UserError):
            BNN.fit(nn.Linear(4, 2), *blobs(30), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_every_setting_is_documented(self):
        for field in fields(FitSettings):
            assert f"{field.name}:" in inspect.getdoc(FitSettings)
