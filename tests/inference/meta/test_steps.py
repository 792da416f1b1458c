"""What is left of trained steps: more never cost more, and where no nat pays a guide guesses."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.episodes import EpisodeSampler, TaskSpec
from guides.tasks.gate import PriorGate
from guides.tasks.gradient_networks import ExactGradient
from inference.elbo import RateDistortionELBO
from inference.evaluation.metrics import Scores
from inference.meta import steps
from inference.meta.settings import MetaSchedule
from inference.meta.steps import guess_where_it_is_cheaper, keep_none_where_it_is_better, keep_steps_that_pay, objective_on
from inference.meta.variants import Variant
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import FeatureSpace
from tests.conftest import gaussian_bank
from tests.guides.tasks.test_unrolled import DIM, WAY, build

SCHEDULE = MetaSchedule(tasks=64, batch=8, validations=2, validation_tasks=20, seed=4)


@pytest.fixture
def tasks():
    return (EpisodeSampler(gaussian_bank(), TaskSpec(way=WAY, shot=1, queries=5)),)


def objective_of(beta=1.0, **options):
    torch.manual_seed(0)
    model, guide = build(beta=beta, units="prior", learned=True, gate=PriorGate(DIM, 0.5), **options)
    return RateDistortionELBO(beta=beta)(model, guide)


def by_steps(objective, tasks):
    return [objective_on(objective, objective.guide.after(k), tasks, SCHEDULE) for k in range(objective.guide.steps + 1)]


def test_after_it_more_steps_never_cost_more(tasks, capsys):
    """Steps that went astray are made smaller or left out; those before them stay as they are."""
    objective = objective_of(gradient=ExactGradient(CategoricalLikelihood()))
    rule = objective.guide.rule
    rule.scale_shift.data[1] = 3.0  # the second step makes the posterior far too narrow
    sizes = rule.log_size.detach().clone()
    before = by_steps(objective, tasks)
    assert before[1] < before[0] < before[2]
    assert keep_steps_that_pay(objective, tasks, SCHEDULE, "mine")
    after = by_steps(objective, tasks)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(after))
    assert after[:2] == before[:2]
    assert rule.log_size[0] == sizes[0]
    assert "mine: step 2" in capsys.readouterr().out
    assert not keep_steps_that_pay(objective, tasks, SCHEDULE, "mine"), "once is enough"


@pytest.mark.parametrize(("losses", "factor"), [((5.0, 9.0), 0.5), ((12.0, 9.5), 0.25), ((12.0, 11.0), 0.0)])
def test_the_best_size_is_kept(losses, factor, monkeypatch):
    """Of a half, a quarter and none: 10 nats before, 13 after the step as it was trained."""
    objective = objective_of(steps=1)
    found = iter((10.0, 13.0, *losses))
    monkeypatch.setattr(steps, "objective_on", lambda *_: next(found))
    keep_steps_that_pay(objective, None, SCHEDULE, "mine")
    assert objective.guide.rule.share.tolist() == [factor]


def test_below_one_all_steps_stay(tasks):
    objective = objective_of(beta=0.9)
    objective.guide.rule.scale_shift.data.fill_(30.0)
    assert not keep_steps_that_pay(objective, tasks, SCHEDULE, "mine")
    assert bool((objective.guide.rule.scale_shift == 30).all())


@pytest.mark.parametrize(("found", "closed"), [(0.99, False), (1.01, True)])
def test_a_guide_that_does_worse_than_guessing_where_it_was_trained_guesses(found, closed, tasks, monkeypatch, capsys):
    objective = objective_of()
    guess = WAY * 5 * math.log(WAY)
    monkeypatch.setattr(steps, "evaluate", lambda *_, **__: Scores(20, 0.5, 0.1, 1.0, 0.1, 0.1, 0.0, found * guess))
    assert guess_where_it_is_cheaper(objective, tasks, SCHEDULE, "mine") is closed
    monkeypatch.undo()
    assert [loss == pytest.approx(guess, rel=1e-6) for loss in by_steps(objective, tasks)] == 4 * [closed]
    assert ("guessing costs" in capsys.readouterr().out) is closed


def test_a_guide_without_a_gate_is_left_alone(tasks):
    objective = objective_of()
    objective.guide.gate = None
    assert not guess_where_it_is_cheaper(objective, tasks, SCHEDULE, "mine")
    assert not guess_where_it_is_cheaper(SimpleNamespace(guide=torch.nn.Identity()), tasks, SCHEDULE, "mine")


SOME, NONE = Variant("sib", "cosine", "gaussian", 0.1, 3), Variant("sib", "cosine", "gaussian", 0.1, 0, reference=True)


def test_k_steps_become_the_reference_without_steps_where_that_is_better(tasks, capsys):
    objectives = {SOME: objective_of(beta=0.1), NONE: objective_of(beta=0.1, steps=0)}
    fitted = {v: nn.ModuleDict({"objective": o, "space": FeatureSpace(3, learned=True)}) for v, o in objectives.items()}
    fitted[NONE]["space"].change.data.fill_(0.5)
    objectives[SOME].guide.rule.scale_shift.data.fill_(30.0)  # every step makes the posterior far too narrow
    objectives[SOME].guide.start.coefficient.data.mul_(-30)
    some, none = (objective_on(o, o.guide, tasks, SCHEDULE) for o in objectives.values())
    assert some > none
    assert keep_none_where_it_is_better(fitted, SOME, lambda _: tasks, SCHEDULE) == [SOME]
    assert bool((fitted[SOME]["space"].change == 0.5).all()), "its feature space too"
    assert "left out" in capsys.readouterr().out
    assert objective_on(objectives[SOME], objectives[SOME].guide, tasks, SCHEDULE) == pytest.approx(none, rel=1e-5)
    assert keep_none_where_it_is_better({SOME: fitted[SOME]}, SOME, lambda _: tasks, SCHEDULE) == [], "nothing to compare with"


@pytest.mark.parametrize(("rate", "kept"), [(1.0, True), (30.0, False)])
def test_what_pays_is_the_objective_and_not_the_distortion(rate, kept, monkeypatch):
    """Steps that take 1 nat off the distortion may cost up to 10 nats of rate where β is 0.1, and no more."""
    objectives = {SOME: objective_of(beta=0.1), NONE: objective_of(beta=0.1, steps=0)}
    scores = {id(objectives[SOME].guide): (9.0, rate), id(objectives[NONE].guide): (10.0, 0.0)}
    found = lambda model, guide, *rest, **options: Scores(2, 0.5, 0.1, 1.0, 0.1, 0.1, *scores[id(guide)][::-1])  # noqa: E731
    monkeypatch.setattr(steps, "evaluate", found)
    fitted = {variant: nn.ModuleDict({"objective": objective}) for variant, objective in objectives.items()}
    assert bool(keep_none_where_it_is_better(fitted, SOME, lambda _: (None,), SCHEDULE)) is not kept
    assert bool(objectives[SOME].guide.rule.log_size.isfinite().all()) is kept
