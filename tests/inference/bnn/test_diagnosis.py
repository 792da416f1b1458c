"""Checks of a run of networks: which algorithms can be simulated, under which prior and noise, what is said of the others."""

import json

import pytest
import torch
from torch import nn

from data.catalogue import load_supervised
from data.errors import UserError
from inference import diagnose, svi_bnn
from inference.bnn import diagnosis
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.bnn import BNN
from inference.bnn.diagnosis import Fitted, excluded, fingerprint, held_words, known_likelihood, places, too_large
from inference.bnn.fit import Problem
from inference.bnn.fitting import Recipe
from inference.bnn.options import BnnOptions
from inference.bnn.posterior import WeightPosterior
from inference.runs.folder import RunFolder
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, ScaledWeightPrior
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood

CURVE = load_supervised("curve", None)


def recipe(algorithm=Algorithm.VANILLA, beta=1.0, **settings):
    return Recipe(algorithm, beta, GaussianLikelihood(0.3), settings=FitSettings(**settings))


def fitted(**settings):
    """Vanilla with a learned prior, and two networks that learned noises 0.1 and 0.4."""
    network = nn.Linear(1, 1)
    model = BayesianNetwork(network, likelihood=GaussianLikelihood(0.3), posteriors=2)
    model.prior = ScaledWeightPrior(GaussianWeightPrior(), WeightScales(model.shapes, PriorScales.LAYER, 2))
    with torch.no_grad():
        model.prior.scales.log_scale.copy_(torch.tensor([[3.0], [5.0]]).log().expand(2, 2))
        model.likelihood.log_noise.copy_(torch.tensor([0.1, 0.4]).log())
    posterior = WeightPosterior(model, torch.zeros(2, 2), torch.zeros(2, 2))
    bnn = BNN(Algorithm.VANILLA, 1.0, posterior, torch.zeros(2))
    problem = Problem(network, CURVE.train, GaussianLikelihood(0.3), {})
    return Fitted(Algorithm.VANILLA, 1.0, recipe(**settings), bnn), problem


@pytest.mark.parametrize(
    ("algorithm", "beta", "settings", "words"),
    [
        (Algorithm.VANILLA, 1.0, {}, ""),
        (Algorithm.LOW_RANK, 1.0, {}, ""),
        (Algorithm.FIXED, 1.0, {}, ""),
        (Algorithm.FIXED, 0.1, {}, "β = 0.1"),
        (Algorithm.BETA_BNN, 1.0, {}, "its prior is made of its posteriors"),
        (Algorithm.DETERMINISTIC, 0.0, {}, "points"),
        (Algorithm.LAPLACE, 1.0, {}, "fitted post hoc"),
        (Algorithm.SWAG, 1.0, {}, "fitted post hoc"),
        (Algorithm.LAST_LAYER, 1.0, {}, "some weights are points"),
        (Algorithm.VANILLA, 1.0, {"weights": "last"}, "some weights are points"),
        (Algorithm.NUTS, 1.0, {}, "the reference"),
    ],
)
def test_only_posteriors_under_a_prior_are_simulated(algorithm, beta, settings, words):
    assert excluded(recipe(algorithm, beta, **settings)) == words


def test_what_was_learned_is_held():
    one, problem = fitted()
    model = one.model(problem)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad and "network" not in name]
    assert float(model.likelihood.log_noise.exp()) == pytest.approx(0.2), "the geometric mean of both networks'"
    torch.testing.assert_close(model.prior(2).variance, torch.tensor([9.0, 9.0]))
    assert one.held().prior_scales is PriorScales.FIXED
    assert one.bnn.posterior.model.prior.scales.log_scale.requires_grad, "the run's own is left as it was"
    held = "prior scales (of the first network) and noise that vanilla learned are held at what they became"
    assert held_words([one]) == held
    assert held_words([Fitted(Algorithm.FIXED, 0.1, recipe(Algorithm.FIXED, 0.1), None, "β = 0.1")]) == ""
    assert isinstance(known_likelihood(CategoricalLikelihood()), CategoricalLikelihood)


def test_posteriors_are_one_where_prior_and_noise_are():
    one, problem = fitted()
    other = fitted()[0]
    assert fingerprint(one.model(problem)) == fingerprint(other.model(problem))
    with torch.no_grad():
        other.bnn.posterior.model.likelihood.log_noise.fill_(-1.0)
    assert fingerprint(one.model(problem)) != fingerprint(other.model(problem))


def test_what_would_take_hours_is_not_begun(monkeypatch):
    one, problem = fitted(epochs=10, batch=100)
    assert too_large(one, problem, 500) == ""
    monkeypatch.setattr(diagnosis, "MOST_WORK", 2 * 10 * 100 * 205)
    assert too_large(one, problem, 500) == "500 data sets would take too long: --simulations 200"
    monkeypatch.setattr(diagnosis, "MOST_NUMBERS", 120 * 70)
    assert too_large(one, problem, 500).endswith("--simulations 70"), "120 inputs of one number"
    monkeypatch.setattr(diagnosis, "MOST_WORK", 2 * 10 * 100 * 20)
    assert "so large a network" in too_large(one, problem, 500)


def test_functions_are_looked_at_inside_the_data_and_beside_them():
    x = torch.tensor([[-1.0], [1.0], [0.5]])
    at, names = places(x, CURVE)
    assert at[:, 0].tolist() == [-3.0, -1.5, 0.0, 1.5, 3.0]
    assert names[0] == "f(-3)"
    assert places(torch.zeros(3, 1, 4, 4), CURVE)[1] is None


@pytest.mark.slow
def test_a_run_is_diagnosed_and_nuts_asked_for(tmp_path):
    words = "--data curve --train-size 12 --hidden 2 --algorithms deterministic,vanilla,fixed-prior,beta-bnn --beta 0.5"
    words += " --epochs 3 --posteriors 2 --chains 2 --warmup 4 --draws 6 --progress false --out"
    svi_bnn.main([*words.split(), str(tmp_path / "run")])
    asked = ["--run", str(tmp_path / "run"), "--simulations", "60"]
    found = {f.name: f for f in diagnose.main(asked)}
    assert set(found) == {"deterministic", "vanilla", "fixed-prior", "beta-bnn"}
    assert len(found["vanilla"].calibration.ranks) == 60
    assert found["vanilla"].calibration.names[-1] == "log likelihood"
    assert [f.calibration for name, f in found.items() if name != "vanilla"] == [None, None, None]
    assert all(f.coverage90 is not None for f in found.values())
    remarks = json.loads((tmp_path / "run" / "diagnostics" / "diagnostics.json").read_text())["remarks"]
    assert any("--nuts true samples the posterior that vanilla approximates" in line for line in remarks)
    assert any("deterministic (points), fixed-prior (β = 0.5), beta-bnn" in line for line in remarks)
    beside = {f.name: f for f in diagnose.main([*asked[:2], "--simulations", "2", "--nuts", "true"])}["vanilla"]
    assert beside.kl_inside > 0
    assert beside.width > 0
    assert beside.r_hat > 0


def test_without_the_run_s_data_its_files_are_looked_at(tmp_path, monkeypatch):
    def missing(*_args, **_options):
        raise UserError("no folder x: give `root`")

    monkeypatch.setattr(diagnosis, "load_supervised", missing)
    found, remarks = diagnosis.diagnose_networks(RunFolder(tmp_path), BnnOptions(), simulations=10, nuts=False)
    assert found == []
    assert remarks == ["SBC and NUTS: not run, for the run's data are not there: no folder x: give `root`"]
