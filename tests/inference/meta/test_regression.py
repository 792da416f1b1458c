"""Few-shot regression by the command, beside the exact predictive density and the task itself."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from data.errors import UserError
from data.regression import linear_evidence, linear_posterior
from guides.tasks.conjugate import ConjugateGuide
from inference.elbo import RateDistortionELBO
from inference.evaluation.arviz import LOO
from inference.evaluation.predictive import Predictive
from inference.meta import regression
from inference.meta.options import SibOptions
from inference.meta.regression import (
    RegressionStudy,
    build_fits,
    load_fits,
    log_predictive,
    regression_variants,
    score_regression,
    scored_tasks,
)
from inference.meta.regression_guides import build_regression, fit_guide
from inference.meta.regression_tasks import LINEAR_PRIOR, TEST, VALIDATION, Problem, exact_nll, regression_tasks
from inference.meta.settings import MetaSchedule
from inference.runs.folder import RunFolder
from inference.svi_sib import main
from models.likelihoods import GaussianLikelihood
from models.tasks.priors import GaussianPrior
from tests.conftest import explore_elsewhere

NOISE = 0.5


def known_objective(beta=1.0):
    """The program at the true prior and noise, in double precision."""
    objective = build_regression("linear", beta)
    objective.model.prior.loc.data = LINEAR_PRIOR[0].double()
    objective.model.prior.log_scale.data = LINEAR_PRIOR[1].double().log()
    objective.model.likelihood.log_noise.data = torch.tensor(NOISE, dtype=torch.float64).log()
    return objective


def tasks(count=20):
    return regression_tasks("linear", count, queries=6, seed=3)


def test_guide_is_the_exact_posterior():
    objective, episode = known_objective(), tasks()
    mean, factor = objective.guide.posterior(episode.support_x, episode.support_y)
    prior = [part.double() for part in LINEAR_PRIOR]
    expected = linear_posterior(episode.support_x, episode.support_y, *prior, NOISE)
    torch.testing.assert_close(mean[:, 0], expected[0])
    torch.testing.assert_close(factor @ factor.mT, expected[1])


def test_objective_is_minus_the_evidence_of_the_support():
    objective, episode = known_objective(), tasks()
    prior = [part.double() for part in LINEAR_PRIOR]
    evidence = linear_evidence(episode.support_x, episode.support_y, *prior, NOISE).sum()
    particles = {"num_particles": 100, "vectorize_particles": True, "max_plate_nesting": 2}
    many = RateDistortionELBO(**particles)(objective.model, objective.guide)
    losses = torch.stack([many(*episode.on_support()).detach() for _ in range(50)])
    assert float(losses.mean()) == pytest.approx(-float(evidence), abs=4 * float(losses.std()) / 50**0.5)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_guide_minimises_distortion_plus_beta_times_rate(beta):
    """Moving the tempered posterior's mean in any direction only raises the objective, to first order not at all."""
    objective, episode = known_objective(beta), tasks(1)
    x, y = episode.support_x, episode.support_y
    loc, scale = (part.double() for part in LINEAR_PRIOR)
    mean, factor = (part.detach() for part in objective.guide.posterior(x, y))
    mean, factor = mean[:, 0].requires_grad_(), factor.requires_grad_()
    covariance = factor @ factor.mT
    squares = (y - (x @ mean[..., None])[..., 0]).square() + ((x @ covariance) * x).sum(-1)
    distortion = (0.5 * squares / NOISE**2 + 0.5 * math.log(2 * math.pi * NOISE**2)).sum()
    q = torch.distributions.MultivariateNormal(mean, covariance)
    rate = torch.distributions.kl_divergence(q, torch.distributions.MultivariateNormal(loc, torch.diag(scale**2))).sum()
    for gradient in torch.autograd.grad(distortion + beta * rate, (mean, factor)):
        torch.testing.assert_close(gradient.tril(), torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_exact_nll_is_the_mean_of_single_query_densities():
    """One query's density is the evidence with it less the evidence without."""
    episode = tasks()
    prior = [part.double() for part in LINEAR_PRIOR]
    alone = linear_evidence(episode.support_x, episode.support_y, *prior, NOISE)
    densities = []
    for i in range(6):
        x = torch.cat([episode.support_x, episode.query_x[:, i : i + 1]], 1)
        y = torch.cat([episode.support_y, episode.query_y[:, i : i + 1]], 1)
        densities.append(linear_evidence(x, y, *prior, NOISE) - alone)
    assert exact_nll(episode) == pytest.approx(-float(torch.stack(densities).mean()), abs=1e-5)


def test_scores_are_those_of_the_predictive_distribution_in_closed_form():
    objective, given = known_objective(), SibOptions(data="linear", test_tasks=400, queries=6)
    record, episode = score_regression(objective, given, TEST), scored_tasks(given, TEST)
    mean, covariance = linear_posterior(episode.support_x, episode.support_y, *(p.double() for p in LINEAR_PRIOR), NOISE)
    error = (episode.query_x @ mean[..., None])[..., 0] - episode.query_y
    spread = (((episode.query_x @ covariance) * episode.query_x).sum(-1) + NOISE**2).sqrt()
    assert record.rmse == pytest.approx(float(error.square().mean().sqrt()), rel=0.01)
    assert record.nll == pytest.approx(record.exact_nll, abs=0.01)
    assert record.coverage90 == pytest.approx(float((error.abs() < 1.645 * spread).double().mean()), abs=0.01)
    assert record.neg_elbo == pytest.approx(record.distortion + record.rate)
    assert record == score_regression(objective, given, TEST), "the same numbers every time"


def exact_loo(episode, beta=1.0) -> torch.Tensor:
    """log p(y_i given x, the other y), nats ``[tasks, support]``: the posterior without each point, one by one."""
    prior, noise = [part.double() for part in LINEAR_PRIOR], NOISE * math.sqrt(beta)
    terms = []
    for i in range(episode.support_x.shape[1]):
        others = torch.arange(episode.support_x.shape[1]) != i
        x, y = episode.support_x[:, i], episode.support_y[:, i]
        mean, covariance = linear_posterior(episode.support_x[:, others], episode.support_y[:, others], *prior, noise)
        variance = (x[:, None] @ covariance @ x[..., None])[:, 0, 0] + NOISE**2
        terms.append(torch.distributions.Normal((x * mean).sum(-1), variance.sqrt()).log_prob(y))
    return torch.stack(terms, -1)


def test_beta_is_chosen_on_other_tasks_than_it_is_tested_on():
    given = SibOptions(data="linear", test_tasks=4)
    validation, test = (scored_tasks(given, stream) for stream in (VALIDATION, TEST))
    assert not torch.isin(validation.query_x, test.query_x).any()
    records = [score_regression(known_objective(beta), given, stream) for stream in (VALIDATION, TEST) for beta in (0.5, 1.0)]
    nlls = dict(zip([(r.split, r.beta) for r in records], (0.1, 0.2, 0.9, 0.0), strict=True))
    records = [replace(r, nll=nlls[r.split, r.beta]) for r in records]
    chosen = RegressionStudy(given).choose(records)
    assert {r.beta for r in chosen if r.selected} == {0.5}


def test_zero_beta_is_refused():
    with pytest.raises(ValueError, match="positive"):
        ConjugateGuide(GaussianPrior(torch.zeros(3), torch.ones(3)), GaussianLikelihood(), beta=0.0)
    with pytest.raises(UserError, match="positive"):
        main(["--data", "linear", "--beta", "0,1"])


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--posterior", "delta", "no variance"),
        ("--initialisation", "queries", "without a support"),
        ("--prior", "mixture", "no exact posterior"),
    ],
)
def test_what_means_nothing_for_regression_is_refused(flag, value, words, tmp_path):
    with pytest.raises(UserError, match=words):
        main(["--data", "network", flag, value, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_has_the_exact_posterior_where_there_is_one_and_k_steps_beside_none():
    named = {data: [v.name for v in regression_variants(SibOptions(data=data, beta=1.0))] for data in ("linear", "network")}
    assert named["linear"] == ["conjugate-linear-beta1-k0", "linear-beta1-k3", "linear-beta1-k0"]
    assert named["network"] == ["network-beta1-k3", "network-beta1-k0"]


def test_network_tasks_have_their_true_prior_and_noise():
    model = Problem("network").model()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert float(model.likelihood.log_noise.exp()) == pytest.approx(0.2)
    assert Problem("network").num_weights == 61 == model.predictor.num_weights


@pytest.mark.parametrize("data", ["linear", "network"])
@pytest.mark.parametrize("gradient", ["equivariant", "exact"])
def test_steps_on_the_support_see_no_query(data, gradient):
    """The posterior of a task is the same whatever its queries, and is that of no other task."""
    given = SibOptions(data=data, beta=1.0, steps=2, gradient=gradient, initialisation="learned")
    fits = build_fits(given, Problem(data).model())
    objective = next(fit for variant, fit in fits.items() if variant.steps == 2)
    episode = Problem(data).tasks(3, queries=4, seed=0)
    first = objective.guide(*episode)
    other = objective.guide(*episode._replace(query_x=episode.query_x.flip(1) + 1, query_y=None))
    torch.testing.assert_close(first.loc, other.loc)
    alone = objective.guide(*episode.tasks(slice(1, 2)))
    torch.testing.assert_close(first.loc[1:2], alone.loc)
    assert not torch.allclose(first.loc[0], first.loc[1])
    assert not objective.guide.saw_labels


@pytest.mark.parametrize("gradient", ["equivariant", "mlp"])
def test_a_guide_is_trained_on_the_labels_that_its_steps_see_and_on_nothing_else_of_the_program(gradient, monkeypatch):
    """Prior and noise stay. Where the support is what is scored, queries without a number are nothing to it."""
    problem = Problem("linear")
    fits = build_fits(SibOptions(data="linear", beta=1.0, steps=1, gradient=gradient), problem.model())
    objective = next(fit for variant, fit in fits.items() if variant.steps == 1)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    unknown = problem.tasks(2, queries=3, seed=0)
    unknown = unknown._replace(query_y=torch.full_like(unknown.query_y, torch.nan))
    monkeypatch.setattr(Problem, "tasks", lambda *_, **__: unknown)
    schedule = MetaSchedule(tasks=4, batch=2)
    if gradient == "mlp":
        with pytest.raises(ValueError, match="the loss became NaN or infinite at step 0"):
            fit_guide(objective, problem, 3, schedule)
        return
    fit_guide(objective, problem, 3, schedule)
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("model.") for name in changed)
    assert all(parameter.requires_grad for parameter in objective.model.parameters())


def test_log_predictive_from_draws_agrees_with_the_closed_form():
    """Of a linear model by draws, as a network's is."""
    objective, episode = known_objective(), tasks(10)
    exact = log_predictive(objective, episode)
    objective.model.predictor.__class__ = type(
        "Opaque", (type(objective.model.predictor).__base__,), {"outputs": type(objective.model.predictor).outputs}
    )
    sampled = log_predictive(objective, episode, num_samples=20000)
    torch.testing.assert_close(sampled, exact, atol=0.05, rtol=0.02)


@pytest.mark.slow
def test_a_learned_start_and_four_steps_come_near_the_optimum_of_each_task(tmp_path):
    """The steps do the work: none of them knows the noise, and the start knows no task."""
    run = main(
        [
            "--data",
            "linear",
            "--beta",
            "1",
            "--steps",
            "4",
            "--initialisation",
            "learned",
            "--tasks",
            "3000",
            "--test-tasks",
            "200",
            "--out",
            str(tmp_path / "run"),
        ]
    )
    rows = json.loads(run.metrics.read_text())["results"]
    record = {(r["method"], r["steps"]): r for r in rows if r["split"] == "test"}
    assert record["conjugate", 0]["regret"] < 0.01
    assert record["sib", 4]["regret"] < 0.25
    assert record["sib", 0]["regret"] > 0.8
    assert record["sib", 4]["selected"] is False
    assert record["conjugate", 0]["selected"] is True
    options = SibOptions(data="linear", beta=1.0, steps=4, initialisation="learned", tasks=3000, test_tasks=200)
    fits = load_fits(options, RunFolder.existing(run.path))
    variant = next(v for v in fits if v.method == "sib" and v.steps == 4)
    again = score_regression(fits[variant], options, TEST, variant=variant)
    assert again.nll == pytest.approx(record["sib", 4]["nll"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rmse"), [("linear", 0.6), ("sinusoids", 0.8)])
def test_regression_run(name, rmse, tmp_path):
    words = f"--data {name} --beta 0.1,1 --test-tasks 300 --steps 1 --tasks 4000"
    arguments = [*words.split(), "--out", str(tmp_path / "run")]
    run = main(arguments)
    records = [r for r in json.loads(run.metrics.read_text())["results"] if r["split"] == "test" and r["method"] == "conjugate"]
    assert [r["beta"] for r in records] == [0.1, 1.0]
    record = records[1]
    assert record["selected"]
    assert not records[0]["selected"]
    assert record["rmse"] < rmse  # the exact posterior's: 0.585; the sinusoids' own standard deviation: 2.1
    assert 0.88 < record["coverage90"] < 0.93
    assert arviz.from_netcdf(run.posterior).posterior["weights"].dims == ("chain", "draw", "task", "feature")
    if name == "linear":
        found = explore_elsewhere(run.path)
        assert found["files"].keys() == found["ranking"].keys()
        assert len(found["files"]) == 6, "the exact posterior and two K, at two β"
        assert found["chosen"]["attributes"]["loo"] == LOO["exact"]
        tested = scored_tasks(SibOptions(data="linear", tasks=4000, test_tasks=300), TEST)
        episode = tested.tasks(slice(8))
        error = torch.tensor(found["chosen"]["loo"]) - exact_loo(episode)
        assert float(error.abs().mean()) < 0.05, "nats per point"
        assert record["exact_nll"] == pytest.approx(exact_nll(tested))
        assert record["exact_nll"] - 0.002 < record["nll"] < record["exact_nll"] + 0.01
        assert record["noise"] == pytest.approx(NOISE, abs=0.02)
    assert record["regret"] == pytest.approx(record["nll"] - record["exact_nll"])
    assert (record["regret"] > 0.01) == (name == "sinusoids"), "bumps know neither amplitude nor phase"


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--methods", "nearest-mean"], "--methods nearest-mean"),
        (["--protocols", "lwof", "--holdout", "5"], "--holdout 5, --protocols lwof"),
        (["--way", "3"], "--way 3"),
        (["--shot", "2"], "--shot 2"),
        (["--features", "missing"], "--features missing"),
        (["--root", "nowhere"], "--root nowhere"),
        (["--precision", "64-true"], "--precision 64-true"),
        (["--mixed", "false"], "--mixed false"),
    ],
)
def test_options_that_regression_has_no_use_for_are_refused(option, named, tmp_path):
    """They would be ignored, and the run's configuration would say otherwise."""
    with pytest.raises(UserError) as error:
        main(["--data", "linear", *option, "--out", str(tmp_path / "run")])
    assert str(error.value) == f"regression (--data linear) has no use for {named}: leave it out"
    assert not (tmp_path / "run").exists()


def test_coverage_is_of_the_mixture_over_draws_and_not_of_a_gaussian_with_its_moments(monkeypatch):
    """Two narrow bumps at ±1: a target a little beyond one of them is inside ± 1.645 standard deviations, and outside the
    central 90 %."""
    episode = tasks(3)
    episode = episode._replace(query_y=torch.full_like(episode.query_y, 1.1))
    means = torch.tensor([1.0, -1.0]).double()[:, None, None].expand(2, *episode.query_y.shape)
    bumps = Predictive(torch.distributions.Normal(means, 0.05), torch.zeros(3))
    monkeypatch.setattr(regression, "predictive", lambda *_, **__: bumps)
    assert regression.predictive_scores(known_objective(), episode)["coverage90"] == 0.0


def test_every_task_has_draws_of_its_own(monkeypatch):
    """In every batch others, lest their error be the same for all tasks."""
    objective, one = known_objective(), tasks(1)
    guide = FreeGaussian(torch.zeros(3).double())
    seen = []
    monkeypatch.setattr(regression, "TASKS_AT_ONCE", 5)
    drawn = regression.predictive
    monkeypatch.setattr(regression, "predictive", lambda *a, **k: seen.append(drawn(*a, **k)) or seen[-1])
    regression.predictive_scores(SimpleNamespace(model=objective.model, guide=guide), one.tasks(torch.zeros(10).long()))
    assert len(torch.cat([found.labels.mean[0, :, 0] for found in seen]).unique()) == 10


class FreeGaussian(PyroModule):
    """q(w) = N(loc, I) of every task."""

    def __init__(self, loc):
        super().__init__()
        self.loc = loc

    def forward(self, support_x, support_y, query_x, query_y=None, way=None):
        with pyro.plate("tasks", len(query_x), dim=-2):
            pyro.sample("weights", dist.Normal(self.loc.expand(len(query_x), 1, 1, 3), 1.0).to_event(2))
