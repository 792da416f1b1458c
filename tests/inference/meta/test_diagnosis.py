"""Image tasks: every number of a learner at the prior is known; who is asked what; NUTS where labels move nothing."""

import math

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from inference.diagnostics.findings import Finding
from inference.evaluation.predictive import predictive
from inference.meta import diagnosis
from inference.meta.diagnosis import examine, is_bounded, is_posterior, judge, learner_names
from inference.runs.files import write_json
from inference.runs.folder import RunFolder
from tests.inference.meta.test_learner import BANK, learner

TASKS, WAY, QUERIES = 6, 3, 2


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few steps and draws."""
    for name, value in {"STEPS": 60, "DRAWS": 40, "WARMUP": 20, "NUTS_TASKS": 2}.items():
        monkeypatch.setattr(diagnosis, name, value)


def fitted(**options):
    usual = {"beta": 1.0, "way": WAY, "queries": QUERIES, "steps": 1, "rank": 3, "power": 1.0}
    return learner(**{**usual, **options})


def guessing():
    """A learner whose posterior is the prior and whose probabilities are equal."""
    made = fitted()
    made.guide.stay_at_prior()
    made.model.predictor.flatten()
    return made


def episode_for(made, imbalance=None):
    sampler = EpisodeSampler(BANK, TaskSpec(WAY, 1, QUERIES, imbalance))
    drawn = sampler.sample(TASKS, seed=2)
    mapped = drawn._replace(support_x=made.space(drawn.support_x), query_x=made.space(drawn.query_x))
    return mapped._replace(support_x=mapped.support_x.detach(), query_x=mapped.query_x.detach())


def test_a_learner_that_guesses_costs_what_guessing_costs_and_has_no_gap():
    made = guessing()
    found, *per_task = examine(made, episode_for(made), nuts=False)
    guess = WAY * QUERIES * math.log(WAY)
    assert found.guess == pytest.approx(guess)
    assert found.losses.tolist() == pytest.approx(TASKS * [guess], rel=1e-5)
    assert found.nll == pytest.approx(math.log(WAY), rel=1e-5)
    assert found.largest_gap[0] == pytest.approx(0, abs=0.5)
    assert found.least_gap[0] == pytest.approx(0, abs=0.5)
    assert found.calibration is None, "its posterior is no conditional of the model"
    assert [f.name.split(", ")[1] for f in per_task] == [
        f"per task {w}" for w in (diagnosis.QUERIES, diagnosis.OWN, diagnosis.SUPPORT)
    ]
    assert [f.nll is None for f in per_task] == [True, False, False], "predictions of known labels say nothing"


def test_bounds_are_on_the_objective_of_the_queries_labels():
    made = fitted()
    episode = episode_for(made)
    found = examine(made, episode, nuts=False)[0]
    own = judge(made.model, made.guide, episode, 1.0)
    torch.testing.assert_close(found.losses, own.losses)
    assert found.largest_gap[0] > max(0.0, found.least_gap[0])
    tempered = judge(made.model, made.guide, episode, 0.0).losses
    rate = predictive(made.model, made.guide, episode, num_samples=diagnosis.DRAWN).rate
    torch.testing.assert_close(own.losses, tempered + rate)
    torch.testing.assert_close(judge(made.model, made.guide, episode, 0.5).losses, tempered + 0.5 * rate)
    torch.testing.assert_close(own.logs.exp(), own.probabilities.gather(-1, episode.query_y[..., None])[..., 0])


def test_of_a_guide_that_sees_the_labels_the_gap_is_known():
    made = fitted(gradient="exact")
    found = examine(made, episode_for(made), nuts=False)[0]
    assert found.gap is not None
    assert found.largest_gap is None


def test_nuts_of_a_model_that_labels_cannot_move_is_the_prior():
    made = guessing()
    found = {f.name.partition(", ")[2]: f for f in examine(made, episode_for(made), nuts=True)}
    assert found[""].regret.mean == pytest.approx(0, abs=1e-4)
    assert found[""].moments is None, "a guide aims at neither of the two posteriors"
    for words in (diagnosis.SUPPORT, diagnosis.QUERIES):
        moments = found[f"per task {words}"].moments
        assert moments.scale_ratio == pytest.approx(1, abs=0.25)
        assert moments.shift < 0.4
        assert found[f"NUTS {words}"].r_hat == 1, "nothing varies"


def test_regret_is_against_what_the_supports_labels_say(monkeypatch):
    made = fitted()
    episode = episode_for(made)

    def sample(model, few, given, *, seed):
        value = -0.5 if given.query_x is few.support_x else -9.0
        logs, rows = torch.full((2, len(few.query_x), WAY * QUERIES), value), model.prior.loc.shape[-1]
        judged = diagnosis.Judged(None, torch.ones(len(few.query_x), WAY * QUERIES, WAY) / WAY, logs[0])
        return diagnosis.Sampled(torch.randn(20, len(few.query_x), WAY, rows), judged, logs, 1.0)

    monkeypatch.setattr(diagnosis, "sample", sample)
    found = examine(made, episode, nuts=True)
    own = judge(made.model, made.guide, episode, 1.0).logs[:2]
    assert found[0].regret.mean == pytest.approx(-0.5 - float(own.mean()), abs=1e-5)
    assert found[0].reference == "NUTS given the support's labels"
    assert found[1].regret is None, "it knows the labels"
    assert [f.nll for f in found[-2:]] == [pytest.approx(0.5), None]


def test_points_and_other_methods_have_calibration_alone():
    for options in ({"posterior": "delta"}, {"methods": "nearest-mean"}):
        made = fitted(**options)
        found = examine(made, episode_for(made), nuts=True)
        assert len(found) == 1
        assert found[0].losses is None
        assert 0 <= found[0].ece <= 1
    assert not is_bounded(fitted(prior="hierarchical"))
    assert is_bounded(fitted(beta=0.1))
    assert not is_posterior(fitted(beta=0.1))
    assert is_posterior(fitted())


def test_learners_are_those_of_the_records(tmp_path):
    run = RunFolder(tmp_path)
    rows = [{"variant": name, "trained_steps": 3} for name in ("a-k3", "a-k0", "a-k3")]
    write_json(run.metrics, {"results": [*rows, {"variant": "lwof"}]})
    assert learner_names(run) == ["a-k3", "a-k0"]


def test_verdicts_say_what_bounds_mean():
    losses = torch.tensor([10.0, 12.0])
    found = Finding("K = 3", losses=losses, informed_losses=losses - 4, refined_losses=losses - 1, guess=20.0)
    assert found.verdict == (
        "K = 3: costs 11.0 nats per task, 9.0 less than guessing; amortization gap at least 1.0 ± 0.0 nats per task, "
        "at most 4.0 ± 0.0 (what the queries' labels are worth included)"
    )
    unseen = Finding("K = 3", losses=losses, informed_losses=losses - 4, refined_losses=losses + 1, guess=5.0)
    assert "6.0 more than guessing" in unseen.verdict
    assert unseen.verdict.endswith("none is seen: optimised on its own predictions +1.0 ± 0.0")
    row = found.row()
    assert [row[name] for name in ("gap_at_least", "gap_at_most", "guess")] == pytest.approx([1.0, 4.0, 20.0])
