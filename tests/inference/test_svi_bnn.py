"""β-BNN: the exact posterior of linear regression, the four algorithms, the command, bad input."""

import json
import math

import arviz
import pytest
import torch
from torch import nn

from data.errors import UserError
from data.items import LabelledItems
from data.regression import linear_evidence, linear_posterior
from guides.mean_field import MeanFieldGuide
from inference.bnn.bnn import BNN
from inference.bnn.options import Algorithm, BnnOptions, Plan
from inference.bnn.report import out_of_distribution
from inference.elbo import RateDistortionELBO
from inference.svi_bnn import main as svi_bnn
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior
from models.likelihoods import GaussianLikelihood
from tests.conftest import kill_midway

TINY = ["--data", "curve", "--hidden", "10", "--epochs", "4", "--rounds", "2", "--posteriors", "2", "--batch", "30"]
TINY += ["--samples", "8", "--progress", "false"]
RECORD = {"algorithm": str, "beta": float, "nll": float, "distortion": float}


class TestLinearRegression:
    """A one-layer network without bias, N(0, s²) prior and known noise: everything is known in closed form."""

    NOISE, SCALE = 0.5, 1.5

    def fit(self, x, y):
        likelihood = GaussianLikelihood(self.NOISE, learned=False)
        model = BayesianNetwork(nn.Linear(3, 1, bias=False), GaussianWeightPrior(self.SCALE), likelihood)
        guide = MeanFieldGuide(torch.zeros(1, 3), 0.1)
        options = {"num_particles": 200, "vectorize_particles": True, "max_plate_nesting": 2}
        objective = RateDistortionELBO(beta=1.0, **options)(model, guide)
        optimizer = torch.optim.Adam(guide.parameters(), 0.05, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        for _ in range(400):
            optimizer.zero_grad()
            objective(x, y).backward()
            optimizer.step()
            schedule.step()
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


def blobs(n=200, classes=3):
    centers = 3 * torch.nn.functional.normalize(torch.randn(classes, 4), dim=-1)
    y = torch.arange(n) % classes
    return centers[y] + torch.randn(n, 4), y


class TestAlgorithms:
    def test_plan_visits_posteriors_as_the_seed_says(self):
        together = Plan(posteriors=3, rounds=2, epochs=4)
        assert [together.position(e)[:2] for e in (0, 1, 2)] == [(0, slice(0, 3)), (0, slice(0, 3)), (1, slice(0, 3))]
        online = Plan(posteriors=3, rounds=2, epochs=4, online=True)
        rows = [online.position(e).rows.start for e in range(online.total_epochs)]
        assert rows == [0, 0, 1, 1, 2, 2] * 2
        assert [online.position(e).round for e in (5, 6)] == [0, 1]
        assert online.progress(6) == 0.5

    @pytest.mark.slow
    @pytest.mark.parametrize("algorithm", Algorithm)
    def test_every_algorithm_learns(self, algorithm):
        x, y = blobs()
        network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        options = {"epochs": 20, "rounds": 2, "posteriors": 3, "batch": 20, "learning_rate": 0.01, "seed": 3}
        fitted = BNN.fit(network, x, y, algorithm=algorithm, beta=0.1, **options)
        scores = fitted.posterior.scores(LabelledItems(x, y, ("0", "1", "2")))
        assert scores["accuracy"] > 0.85
        assert len(fitted.posterior.loc) == (3 if algorithm.is_mixture else 1)
        assert bool(fitted.rates.isnan().all()) == (algorithm is Algorithm.DETERMINISTIC)

    def test_online_refreshes_after_each_posterior_and_beta_bnn_after_all(self):
        """With an enormous β nothing is learned after the first round but what the mixture allows: online's second posterior
        may sit on the first, which β-BNN's cannot see before the round ends."""
        x, y = blobs(60)
        network = nn.Linear(4, 3)
        rates = {}
        for algorithm in ("beta-bnn", "online"):
            options = {"epochs": 40, "rounds": 1, "posteriors": 2, "batch": 60, "learning_rate": 0.05, "scale_speed": 4.0}
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

    def test_same_seed_same_numbers(self):
        x, y = blobs(60)
        options = {"epochs": 4, "rounds": 2, "posteriors": 2, "algorithm": "online"}
        first, second = (BNN.fit(nn.Sequential(nn.Linear(4, 3)), x, y, seed=s, **options) for s in (0, 0))
        assert first.posterior.loc.shape == second.posterior.loc.shape
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
        first, second = (BNN.fit(network, x, y, seed=0, **options) for _ in range(2))
        torch.testing.assert_close(first.posterior.loc, second.posterior.loc, atol=0, rtol=0)

    def test_draws_come_from_all_components(self):
        x, y = blobs(60)
        fitted = BNN.fit(nn.Linear(4, 3), x, y, algorithm="beta-bnn", posteriors=3, epochs=3)
        draws = fitted.posterior.sample(6)
        nearest = torch.cdist(draws, fitted.posterior.loc).argmin(1)
        assert nearest.tolist() == [0, 1, 2, 0, 1, 2]

    def test_uncertainty_grows_away_from_the_data(self):
        x, y = blobs(300)
        network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        fitted = BNN.fit(network, x, y, algorithm="beta-bnn", beta=1.0, epochs=42, learning_rate=0.01, scale_speed=5.0)
        inside = LabelledItems(x, y, ("0", "1", "2"))
        outside = LabelledItems(0.3 * torch.randn(200, 4), torch.zeros(200, dtype=torch.long), ("0",))
        assert out_of_distribution(fitted, inside, outside, 40) > 0.7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return svi_bnn([*TINY, "--out", str(tmp_path_factory.mktemp("bnn") / "run")])


@pytest.mark.slow
class TestCommand:
    def test_run_folder_holds_what_is_promised(self, run):
        metrics = json.loads(run.metrics.read_text())
        assert metrics.keys() == {"command", "dataset", "seed", "seconds", "results"}
        test = [r for r in metrics["results"] if r["split"] == "test"]
        assert [r["algorithm"] for r in test] == [algorithm.value for algorithm in BnnOptions().algorithms]
        for record in test:
            for name, kind in RECORD.items():
                assert isinstance(record[name], kind), (name, record[name])
        assert {p.stem for p in run.plots.glob("*.png")} == {"learning_curves", "rate_distortion", "regression"}

    def test_classification_has_reliability_and_entropy(self, tmp_path):
        small = ["--hidden", "8", "--train-size", "200", "--epochs", "2", "--rounds", "1", "--posteriors", "2", "--beta", "1"]
        run = svi_bnn([*small, "--samples", "4", "--progress", "false", "--out", str(tmp_path / "run")])
        assert {p.stem for p in run.plots.glob("*.png")} == {"learning_curves", "reliability", "entropy"}
        records = json.loads(run.metrics.read_text())["results"]
        for name in ("accuracy", "ece", "train_accuracy", "gap", "auroc"):
            assert all(isinstance(r[name], float) for r in records), name
        mixture = [r for r in records if r["algorithm"] in ("beta-bnn", "online")]
        assert all(r["information"] <= math.log(2) + 1e-6 for r in mixture)

    def test_posterior_is_inference_data(self, run):
        data = arviz.from_netcdf(run.posterior)
        assert data.posterior["0.weight" if "0.weight" in data.posterior else "1.weight"].dims[:2] == ("chain", "draw")
        assert data.posterior_predictive["prediction"].shape == (1, 100, 100)
        assert data.log_likelihood["y"].shape == (1, 100, 100)

    def test_killed_run_ends_with_the_numbers_of_an_unbroken_one(self, tmp_path):
        arguments = [*TINY, "--epochs", "24", "--rounds", "3", "--algorithms", "online", "--beta", "1"]
        whole = svi_bnn([*arguments, "--out", str(tmp_path / "whole")])
        kill_midway("svi_bnn", arguments, tmp_path / "broken", "online-beta1")
        broken = svi_bnn(["--resume", str(tmp_path / "broken")])
        first, second = (json.loads(r.metrics.read_text())["results"] for r in (whole, broken))
        assert first == second


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--posteriors", "0"], "--posteriors 0: must be a whole number, above 0"),
            (["--beta", "-1"], "not a finite number, 0 or more"),
            (["--prior", "cauchy"], "--prior cauchy: choose gaussian"),
            (["--bootstrap-size", "1000"], "n_b must not exceed n"),
            (["--likelihood", "cauchy"], "--likelihood cauchy: choose categorical"),
            (["--likelihood", "categorical"], "real targets"),
            (["--algorithms", "magic"], "--algorithms magic: magic is unknown: choose vanilla"),
            (["--epochs", "5"], "--epochs 5 must be a multiple of --rounds 2"),
            (["--network", "lenet"], "needs images"),
            (["--hidden", "ten"], "--hidden ten: ten is not a positive whole number"),
            (["--train-size", "100000"], "there are 120"),
            (["--data", "glyphs", "--network", "resnet18"], "beta-bnn: batch norm's running statistics"),
            (["--data", "nothing"], "unknown data set"),
            (["--data", "mnist"], "needs root"),
        ],
    )
    def test_one_line_and_nothing_left(self, options, message, tmp_path):
        with pytest.raises(UserError) as error:
            svi_bnn([*TINY, *options, "--out", str(tmp_path / "run")])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x, y + 1), "labels from 1 to 3, but the network has outputs for 0 to 2"),
            (lambda x, y: (x, y - 1), "labels from -1"),
            (lambda x, y: (x.index_fill(0, torch.tensor([3, 4]), torch.nan), y), "2 of 200 items hold NaN"),
            (lambda x, y: (x[:, :2], y), "cannot take items of shape 2"),
        ],
    )
    def test_bad_data_is_named(self, change, message):
        x, y = change(*blobs())
        with pytest.raises(UserError, match=message):
            BNN.fit(nn.Linear(4, 3), x, y)
