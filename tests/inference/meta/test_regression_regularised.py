"""Methods that penalise memory: what β is, what is counted once, bounds, and that training makes them read the support."""

import json
import math

import arviz as az
import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from data.errors import UserError
from data.seeding import mix_seed
from inference.diagnostics.dependence import PacBayesBound, support_information
from inference.meta.choices import split_choice
from inference.meta.comparison import numbers_adapted, points_adapted
from inference.meta.regression_comparison import MetaRegressionStudy, bound_note, rate_cell
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_options import RegressionOptions
from inference.meta.regression_scores import exact_reference, generalisation, score, shared_rate
from inference.meta.regression_tasks import NOISE, TEST, VALIDATION, Problem
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from inference.svi_meta import main as svi_meta


def setup_of(tasks=100, shot=10, queries=5):
    return Setup(Problem("memorisable", shot), GuideSettings(), MetaSchedule(tasks, batch=25, learning_rate=3e-3), queries)


def made(name, setup=None, **swept):
    name, given = split_choice(name)
    setup = setup or setup_of()
    variants = REGRESSION_METHODS[name].variants(VariantSettings(beta=swept.get("beta", (0.5,)), given=given), setup.problem)
    return variants[0], REGRESSION_METHODS[name].build(setup, variants[0])


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("mr-maml:weight=0.02", 0.02 * 100 * 5),
        ("mr-maml:weight=0.02:penalty=decay", 0.02 * 100 * 5),
        ("mr-maml:weight=0.02:penalty=codes", 0.02),
        ("mr-cnp:weight=0.02", 0.02 * 100 * 5),
        ("cnp:weight=0.02:penalty=weights", 0.02 * 100 * 5),
        ("mr-maml", 0.5),
        ("cnp:penalty=decay", 0.5),
    ],
)
def test_the_papers_weight_is_beside_a_mean_and_ours_beside_a_sum(name, beta):
    variant, fit = made(name)
    assert fit.objective.elbo.beta == pytest.approx(beta)
    assert variant.beta == (None if "weight=" in name else 0.5)


def test_a_code_of_the_only_support_point_is_no_number_of_the_tasks_own():
    setup = setup_of(shot=1, queries=2)
    _, fit = made("mr-cnp:penalty=codes", setup)
    assert numbers_adapted(fit.guide, fit.embed(setup.draw(3, 0))) == 0


def test_betas_are_swept_but_for_a_methods_own():
    method, swept = REGRESSION_METHODS["mr-cnp"], {"beta": (0.0, 0.5, 2.0)}
    assert [v.beta for v in method.variants(VariantSettings(**swept), Problem("memorisable"))] == [0.5, 2.0]
    own = method.variants(VariantSettings(**swept, given="weight=0.1"), Problem("memorisable"))
    assert [v.name for v in own] == ["mr-cnp-weight=0.1-network-k0"]
    assert [v.steps for v in REGRESSION_METHODS["mr-maml"].variants(VariantSettings(), Problem("memorisable"))] == [100, 100]


@pytest.mark.parametrize("method", ["mr-maml:tested=draws", "mr-maml:penalty=decay:tested=draws", "mr-cnp:tested=means"])
def test_how_codes_are_tested_is_refused_where_there_are_none(method):
    with pytest.raises(UserError, match=r"`tested=\w+` is about penalised codes: choose `penalty=codes`, or leave it out$"):
        RegressionOptions(data="memorisable", methods=method)
    name, _, value = method.rpartition("=")
    codes = f"{name.replace(':penalty=decay', '')}={value}:penalty=codes"
    assert len(RegressionOptions(data="memorisable", methods=codes).methods) == 1


@pytest.mark.parametrize(
    "method", ["mr-maml:penalty=decay", "mr-maml:penalty=codes", "mr-cnp:penalty=codes", "cnp", "cnp:penalty=decay"]
)
def test_a_scale_is_refused_where_no_weights_are_random(method):
    with pytest.raises(UserError, match=r"`scale=0\.5` is about random weights: choose `penalty=weights`, or leave it out$"):
        RegressionOptions(data="memorisable", methods=f"{method}:scale=0.5")
    name = method.partition(":")[0]
    assert len(RegressionOptions(data="memorisable", methods=f"{name}:penalty=weights:scale=0.5").methods) == 1


def test_a_weight_is_refused_where_there_is_no_penalty():
    with pytest.raises(UserError, match=r"`weight=0\.5` is a penalty's: choose `penalty=weights` or `decay`, or leave it out$"):
        RegressionOptions(data="memorisable", methods="cnp:weight=0.5")
    assert len(RegressionOptions(data="memorisable", methods="cnp:weight=0.5:penalty=decay").methods) == 1


def test_the_papers_objective_is_ours_over_n_k_up_to_a_constant():
    """Mean squared error and β_theirs KL of one batch of tasks; networks of the authors' code."""
    noise = 0.5**0.5
    _, fit = made(f"mr-maml:weight=5e-5:test_steps=1:noise={noise!r}")
    fit = fit.double()
    with torch.no_grad():
        fit.guide.log_scale.fill_(-50.0)
    assert fit.guide.loc.numel() == 22 * 100 + 101 * 5
    assert points_adapted(fit.model) == 6 * 40 + 41 * 40 + 41
    tasks = setup_of().draw(25, seed=3)
    theirs_kl = kl_divergence(Normal(fit.guide.loc, fit.guide.log_scale.exp()), Normal(0.0, 1.0)).sum()
    predicted = fit.model.labels(fit.guide.loc, *tasks[:3], 1).mean
    theirs = (predicted - tasks.query_y).square().mean() + 5e-5 * theirs_kl
    constant = 0.5 * math.log(2 * math.pi * noise**2)
    torch.testing.assert_close(fit(tasks) / (25 * 5) - constant, theirs, rtol=1e-6, atol=1e-8)


def test_one_training_step_of_maml_and_as_many_of_the_test_as_asked(monkeypatch):
    module, seen = REGRESSION_METHODS["mr-maml"].train.__globals__, []
    monkeypatch.setitem(module, "meta_train", lambda fit, setup: seen.append([m.guide.steps for m in adapted(fit)]))
    for penalty in ("weights", "codes"):
        variant, _ = made(f"mr-maml:test_steps=7:penalty={penalty}")
        fit = REGRESSION_METHODS["mr-maml"].train(setup_of(), variant)
        assert [m.guide.steps for m in adapted(fit)] == [7]
    assert seen == [[1], [1]]


def adapted(fit):
    return [part for part in fit.modules() if type(part).__name__ == "AdaptedScorer"]


@pytest.mark.parametrize(
    ("name", "at_means"),
    [
        ("mr-maml:penalty=codes", True),
        ("mr-maml:penalty=codes:tested=draws", False),
        ("mr-cnp:penalty=codes", False),
        ("mr-cnp:penalty=codes:tested=means", True),
    ],
)
def test_steps_are_taken_from_the_means_of_codes_and_processes_read_draws(name, at_means):
    _, fit = made(name)
    assert fit.guide.at_means is at_means
    assert fit.model.encoder.codes == 5


def test_rates_that_are_counted_once():
    setup = setup_of()
    tasks = setup.draw(3, seed=0)
    _, weights = made("mr-cnp")
    expected = kl_divergence(weights.guide.distribution(), weights.model.prior(torch.zeros(())))
    assert shared_rate(weights, tasks) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert all(shared_rate(made(name)[1], tasks) is None for name in ("mr-cnp:penalty=codes", "mr-cnp:penalty=decay", "cnp"))


def test_the_bound_is_of_the_bounded_loss_of_training_tasks():
    setup = setup_of(queries=6)
    _, fit = made("mr-cnp", setup)
    found = generalisation(fit, setup)
    tasks = fit.embed(setup.draw(25, mix_seed(0, 0, 0)))
    theta = fit.guide.distribution().sample((400,))
    with torch.no_grad():
        predicted = fit.model.labels(theta[:, None, None], *tasks[:3], 1).mean
    loss = (predicted - tasks.query_y).square().clamp(max=1).mean()
    assert found["bounded_loss"] == pytest.approx(float(loss), abs=0.02)
    assert found["pac_bayes"] == PacBayesBound(found["bounded_loss"], found["shared_rate"], tasks=100, queries=6).value
    assert generalisation(made("cnp")[1], setup) == dict.fromkeys(("shared_rate", "bounded_loss", "pac_bayes"))


def test_records_and_what_the_table_says_of_them(tmp_path):
    setup = setup_of(shot=5)
    tasks = setup.draw(20, seed=4, split="test")
    reference = exact_reference(setup.problem, tasks, tmp_path)
    variant, fit = made("mr-cnp", setup)
    record = score(fit, variant, setup, tasks, TEST, reference=reference)
    assert (record.shot, record.reference, record.adapted) == (5, "exact Bayes", 0)
    assert rate_cell(record) == f"{record.shared_rate:.0f} once"
    assert "vacuous: at 0 loss the rate may be" in bound_note(record, setup)
    variant, fit = made("mr-maml:penalty=codes:test_steps=2:tested=draws", setup)
    record = score(fit, variant, setup, tasks, TEST)
    assert (record.shared_rate, record.adapted) == (None, 6 * 40 + 41 * 40 + 41)
    assert rate_cell(record) == f"{record.rate:.2f}"
    assert bound_note(record, setup) == ""


def test_a_network_blind_to_the_support_has_no_information():
    _, fit = made("mr-cnp")
    with torch.no_grad():
        fit.model.scorer.scorer.encoder[-1].weight.zero_()
        fit.model.scorer.scorer.encoder[-1].bias.zero_()
    tasks = fit.embed(setup_of().draw(6, seed=1))
    told = support_information(fit.model, fit.guide, tasks, exclusive=False, supports=4, num_samples=4)
    assert float(told.abs().max()) < 1e-6


def test_training_tasks_tell_their_amplitude_and_new_ones_a_wrong_one():
    setup = setup_of(shot=4)
    for split, known in (("train", True), ("test", False)):
        tasks = setup.draw(400, seed=2, split=split)
        assert tasks.support_x.shape == (400, 4, 21)
        number = tasks.support_x[:, 0, 1:].argmax(-1)
        assert int(number.max()) == 15
        told = torch.linspace(0.1, 4.0, 20, dtype=torch.float64)[number][:, None] * tasks.query_x[..., 0].sin()
        left = (tasks.query_y - told).std()
        assert (abs(float(left) - NOISE["memorisable"]) < 0.01) is known


@pytest.mark.parametrize(("data", "shot"), [("linear", 3), ("network", 2), ("sinusoids", 4), ("memorisable", 5)])
def test_the_number_of_support_points_can_be_chosen(data, shot):
    options = RegressionOptions(data=data, shot=shot)
    assert options.problem.shot == shot
    assert options.setup().draw(3, seed=0).support_y.shape == (3, shot)
    assert RegressionOptions(data=data).problem.shot == 10


@pytest.mark.slow
def test_penalised_codes_make_it_read_the_support():
    """A process that learns training tasks by heart does worse on new ones than one whose encoder's weights are costly."""
    setup = Setup(Problem("memorisable", 10), GuideSettings(), MetaSchedule(20000, batch=10, learning_rate=3e-3), 10)
    told, errors = [], []
    for name in ("cnp:width=100:code=5:noise=0.1", "mr-cnp:weight=0.05:noise=0.1"):
        variant, _ = made(name, setup)
        fit = REGRESSION_METHODS[split_choice(name)[0]].train(setup, variant)
        seen = fit.embed(setup.draw(40, seed=5, split="test"))
        labels = fit.model.labels(fit.guide.loc, *seen[:3], 1) if hasattr(fit.guide, "loc") else None
        mean = fit.model.scorer(*seen[:3], 1)[..., 0] if labels is None else labels.mean
        errors.append(float((mean - seen.query_y).square().mean().detach()))
        told.append(float(support_information(fit.model, fit.guide, seen, exclusive=False, num_samples=4).mean()))
    assert errors[1] < 0.5 * errors[0]
    assert told[1] > told[0]


@pytest.mark.slow
def test_the_command(tmp_path):
    words = ["--data", "memorisable", "--shot", "5", "--tasks", "100", "--test-tasks", "18", "--queries", "4"]
    methods = "cnp:width=8,mr-cnp:weight=0.1:hidden=8,mr-maml:penalty=codes:test_steps=2:tested=draws"
    run = svi_meta([*words, "--methods", methods, "--out", str(tmp_path / "run")])
    rows = [row for row in json.loads(run.metrics.read_text())["results"] if row["split"] == "test"]
    assert {row["method"] for row in rows} == {"cnp", "mr-cnp", "mr-maml"}
    assert all(row["shot"] == 5 and row["exact_nll"] < 0 for row in rows)
    by_name = {row["method"]: row for row in rows}
    assert by_name["mr-cnp"]["pac_bayes"] > 1
    assert by_name["mr-maml"]["rate"] > 0
    assert by_name["cnp"]["shared_rate"] is None
    assert untimed(svi_meta(["--resume", str(run.path)])) == untimed(run)


def untimed(run):
    rows = json.loads(run.metrics.read_text())["results"]
    return [{k: v for k, v in row.items() if k not in ("adapt_ms", "tasks_per_second")} for row in rows]


def test_supports_are_exchanged_among_tasks_that_tell_the_same(monkeypatch):
    seen, setup = [], setup_of()
    monkeypatch.setitem(score.__globals__, "dependence", lambda fit, episode: seen.append(episode) or NO_DEPENDENCE)
    variant, fit = made("cnp:width=8")
    score(fit, variant, setup, setup.draw(6, seed=4, split="test"), TEST)
    assert len(seen[0].support_x[..., 1:].unique(dim=0)) == 1


def test_a_run_tests_on_new_tasks():
    study = MetaRegressionStudy(RegressionOptions(data="memorisable", test_tasks=300))
    for stream in (VALIDATION, TEST):
        tasks = study.tasks(stream)
        told = torch.linspace(0.1, 4.0, 20, dtype=torch.float64)[tasks.query_x[:, 0, 1:].argmax(-1)]
        assert float((tasks.query_y - told[:, None] * tasks.query_x[..., 0].sin()).std()) > 0.5


NO_DEPENDENCE = {"support_information": None, "transductive": False}


@pytest.mark.slow
def test_steps_that_run_away_from_draws_of_the_prior_are_saved_as_what_they_are(tmp_path):
    """Of what no number tells, posteriors hold none: a run ends all the same."""
    words = [
        "--data",
        "memorisable",
        "--tasks",
        "20",
        "--test-tasks",
        "18",
        "--queries",
        "4",
        "--methods",
        "mr-maml:size=10:test_steps=9",
    ]
    run = svi_meta([*words, "--out", str(tmp_path / "run")])
    saved = az.from_netcdf(next(run.posteriors.glob("*.nc")))
    assert not np.isfinite(saved.prior_predictive["y"]).all()
