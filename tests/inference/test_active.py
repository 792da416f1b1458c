"""Active learning: scores against enumeration and closed forms, fair ties, and labels that nobody has asked for stay hidden."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.errors import UserError
from data.regression import linear_posterior
from data.semi_supervised import Unlabelled
from guides.empty import EmptyGuide
from inference.active import (
    Acquisition,
    ask,
    choose,
    curves,
    first_known,
    measures,
    mutual_information,
    predictive_entropy,
    predictive_variance,
    score,
)
from inference.evaluation.predictive import predictive
from inference.meta.methods import METHODS
from inference.meta.regression_guides import build_regression
from inference.meta.regression_tasks import LINEAR_PRIOR, NOISE, Problem
from inference.meta.settings import GuideSettings, VariantSettings
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.base import Scorer
from tests.conftest import gaussian_bank

DOUBLE = torch.float64


def drawn_probabilities(draws=2, items=7, way=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(draws, 2, items, way, generator=generator, dtype=DOUBLE).mul(2).softmax(-1)


def test_entropy_is_that_of_the_mean_probabilities():
    probs = torch.tensor([[[[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]]], [[[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]]]], dtype=DOUBLE)
    found = predictive_entropy(dist.Categorical(probs))
    torch.testing.assert_close(found, torch.tensor([[math.log(2), math.log(2), 0.0]], dtype=DOUBLE), rtol=0, atol=1e-7)
    by_hand = [[-sum(p * math.log(p) for p in item) for item in task] for task in drawn_probabilities().mean(0).tolist()]
    torch.testing.assert_close(predictive_entropy(dist.Categorical(drawn_probabilities())), torch.tensor(by_hand, dtype=DOUBLE))


def test_bald_is_the_mutual_information_of_label_and_weights():
    """Two weights, equally likely: Σ p(y, w) log p(y, w) / p(y) p(w), by enumeration."""
    probs = drawn_probabilities()
    joint = probs.permute(1, 2, 0, 3) / 2  # [tasks, items, w, y]
    apart = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    by_hand = (joint * (joint / apart).log()).sum((-2, -1))
    torch.testing.assert_close(mutual_information(dist.Categorical(probs)), by_hand)
    certain = torch.eye(2, dtype=DOUBLE)[:, None, None]  # each weight is sure of another class: the label tells which it is
    torch.testing.assert_close(mutual_information(dist.Categorical(certain)), torch.full((1, 1), math.log(2), dtype=DOUBLE))


def test_a_point_has_nothing_to_tell_of_weights():
    for labels in (dist.Categorical(drawn_probabilities(1)), dist.Normal(torch.randn(1, 2, 7), torch.rand(1, 2, 7) + 1)):
        assert torch.equal(mutual_information(labels), torch.zeros(2, 7))


def posterior_of_linear_tasks(tasks=6, queries=40):
    episode = Problem("linear").tasks(tasks, queries=queries, seed=3)
    loc, scale = (part.double() for part in LINEAR_PRIOR)
    return episode, *linear_posterior(episode.support_x, episode.support_y, loc, scale, NOISE["linear"])


def test_of_linear_tasks_bald_has_a_closed_form_and_wants_the_largest_variance():
    """Draws m ± √D L e_j have exactly the moments of N(m, L Lᵀ)."""
    episode, mean, covariance = posterior_of_linear_tasks()
    spread = covariance.shape[-1] ** 0.5 * torch.linalg.cholesky(covariance).mT.movedim(1, 0)  # [D, tasks, D]
    weights = torch.cat([mean + spread, mean - spread])
    outputs = (episode.query_x @ weights[..., None])[..., 0]
    labels, of_function = dist.Normal(outputs, NOISE["linear"]), ((episode.query_x @ covariance) * episode.query_x).sum(-1)
    bald = mutual_information(labels)
    torch.testing.assert_close(bald, 0.5 * torch.log1p(of_function / NOISE["linear"] ** 2))
    torch.testing.assert_close(predictive_variance(labels), of_function + NOISE["linear"] ** 2)
    askable = torch.ones_like(bald, dtype=torch.bool)
    for scores in (bald, predictive_variance(labels)):
        assert torch.equal(choose(scores, askable, seed=0)[:, 0], of_function.argmax(-1))


def test_draws_of_the_exact_posterior_say_the_same():
    episode, _, covariance = posterior_of_linear_tasks()
    objective = build_regression("linear", 1.0)
    loc, scale = (part.double() for part in LINEAR_PRIOR)
    with torch.no_grad():
        objective.model.prior.loc.copy_(loc)
        objective.model.prior.log_scale.copy_(scale.log())
        objective.model.likelihood.log_noise.fill_(math.log(NOISE["linear"]))
    labels = predictive(objective.model, objective.guide, episode, num_samples=4000).labels
    of_function = ((episode.query_x @ covariance) * episode.query_x).sum(-1)
    found = 2 * mutual_information(labels).mul(2).expm1() * NOISE["linear"] ** 2 / 2
    assert float((found / of_function - 1).abs().max()) < 5 * (2 / 2000) ** 0.5, "2000 pairs of draws"


def test_scores_are_of_labels_that_they_are_for():
    classes, values = dist.Categorical(drawn_probabilities()), dist.Normal(torch.zeros(2, 1, 3), 1.0)
    with pytest.raises(UserError, match="acquisition=variance"):
        score(values, Acquisition.ENTROPY)
    with pytest.raises(UserError, match="acquisition=entropy"):
        score(classes, Acquisition.VARIANCE)


def test_the_highest_scores_that_may_be_asked_for():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [3.0, torch.nan, 2.0, 1.0]])
    askable = torch.tensor([[True, False, True, True], [True, True, False, True]])
    assert choose(scores, askable, 2, seed=0).tolist() == [[3, 2], [0, 3]]


def test_of_equal_scores_each_is_as_likely():
    tasks = 4000
    scores = torch.tensor([0.3, 0.3 + 1e-7, 0.1, 0.3, 0.3]).expand(tasks, -1)
    askable = torch.tensor([True, True, True, True, False]).expand(tasks, -1)
    counts = choose(scores, askable, seed=1).flatten().bincount(minlength=5) / tasks
    assert counts[[2, 4]].tolist() == [0.0, 0.0]
    assert float((counts[[0, 1, 3]] - 1 / 3).abs().max()) < 4 * (2 / 9 / tasks) ** 0.5
    at_random = choose(torch.zeros(tasks, 5), torch.ones(tasks, 5, dtype=torch.bool), 2, seed=2)
    assert float((at_random.flatten().bincount() / tasks - 0.4).abs().max()) < 4 * (0.24 / tasks) ** 0.5
    assert bool((at_random[:, 0] != at_random[:, 1]).all())
    assert not torch.equal(at_random, choose(torch.zeros(tasks, 5), torch.ones(tasks, 5, dtype=torch.bool), 2, seed=3))


def test_what_is_known_at_first():
    pool = pool_of(tasks=500)
    known = first_known(pool, 2, seed=0)
    for c in range(3):
        assert ((pool.support_y == c) & known).sum(-1).tolist() == [2] * 500
    assert float((known.double().mean(0) - 0.4).abs().max()) < 4 * (0.24 / 500) ** 0.5
    values = Problem("linear").tasks(500, queries=1, seed=0)
    few = first_known(values, 3, seed=0)
    assert few.sum(-1).tolist() == [3] * 500
    assert float((few.double().mean(0) - 0.3).abs().max()) < 4 * (0.21 / 500) ** 0.5
    with pytest.raises(UserError, match="labels=6"):
        first_known(pool, 6, seed=0)


def pool_of(tasks=5, shot=5):
    return EpisodeSampler(gaussian_bank(dim=4, noise=1.5), TaskSpec(3, shot, 2)).sample(tasks, seed=0).to(dtype=DOUBLE)


def objective_of(name="gaussian-classes", dim=4):
    variant = METHODS[name].variants(VariantSettings(beta=(0.3,)))[0]
    return METHODS[name].build(GuideSettings(way=3), variant, torch.randn(9, dim, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("acquisition", [Acquisition.RANDOM, Acquisition.ENTROPY, Acquisition.BALD])
def test_labels_that_are_not_asked_for_are_never_read(acquisition):
    pool, (model, guide) = pool_of(), (part.double() for part in objective_of())
    known, how = first_known(pool, 1, seed=0), {"labels": 4, "acquisition": acquisition, "seed": 5}
    turns = list(ask(model, guide, pool, known, **how))
    assert [turn.asked for turn in turns] == [0, 1, 2, 3, 4]
    assert [turn.known.sum(-1).tolist() for turn in turns] == [[3 + n] * 5 for n in range(5)]
    assert all(bool((after.known >= before.known).all()) for before, after in itertools.pairwise(turns))
    other = pool.support_y.where(turns[-1].known, (pool.support_y + 1) % 3)
    for turn, same in zip(turns, ask(model, guide, pool._replace(support_y=other), known, **how), strict=True):
        assert torch.equal(turn.known, same.known)
        assert torch.equal(turn.predicted.probabilities(), same.predicted.probabilities())


def test_each_turn_asks_for_the_best_under_what_is_known_by_then():
    pool, (model, guide) = pool_of(), (part.double() for part in objective_of())
    known, how = first_known(pool, 1, seed=0), {"num_samples": 8, "seed": 5, "batch": 5}
    *_, turn = ask(model, guide, pool, known, labels=2, num_samples=8, seed=5)
    for _ in range(2):
        order = [row.nonzero()[:, 0] for row in known]
        support = [torch.stack([x[i] for x, i in zip(part, order, strict=True)]) for part in (pool.support_x, pool.support_y)]
        seen = pool._replace(support_x=support[0], support_y=support[1])
        bald = mutual_information(predictive(model, guide, seen, query_x=pool.support_x, **how).labels)
        known = known | (bald == bald.masked_fill(known, -1).amax(-1, keepdim=True))
    assert torch.equal(turn.known, known)
    seen = pool._replace(support_x=pool.support_x[known].view(5, 5, -1), support_y=pool.support_y[known].view(5, 5))
    assert torch.equal(turn.predicted.probabilities(), predictive(model, guide, seen, **how).probabilities())


def test_tasks_stay_apart():
    pool, (model, guide) = pool_of(), (part.double() for part in objective_of())
    known = first_known(pool, 1, seed=0)
    changed = pool._replace(support_x=pool.support_x.clone())
    changed.support_x[0] += torch.randn(15, 4, dtype=DOUBLE)
    *_, one = ask(model, guide, pool, known, labels=3)
    *_, two = ask(model, guide, changed, known, labels=3)
    assert torch.equal(one.known[1:], two.known[1:])
    torch.testing.assert_close(one.predicted.probabilities()[1:], two.predicted.probabilities()[1:])


class Spy(Scorer):
    """Says nothing, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros((), dtype=DOUBLE))
        self.seen = []

    def forward(self, support_x, support_y, query_x, way):
        self.seen.append(Episode(support_x, support_y, query_x))
        return self.scale * query_x.new_ones(*query_x.shape[:2], way)


@pytest.mark.parametrize(("how", "support", "queries"), [("left-out", 3, 6), ("support", 15, 6), ("queries", 3, 6)])
def test_the_rest_of_the_pool_is_seen_without_labels_or_not_at_all(how, support, queries):
    pool, spy = pool_of(), Spy()
    known = first_known(pool, 1, seed=0)
    list(ask(ConditionalModel(spy), EmptyGuide(), pool, known, labels=0, unlabelled=Unlabelled(how)))
    (seen,) = spy.seen
    assert seen.support_y.shape[1] == support
    assert seen.query_x.shape[1] == queries, "a model is asked of the queries alone; a guide would see the others"
    assert (seen.support_y >= 0).sum(-1).tolist() == [3] * 5


def test_several_at_once():
    pool, (model, guide) = pool_of(), objective_of()
    pool, known = pool.to(dtype=torch.float32), first_known(pool, 1, seed=0)
    assert [t.asked for t in ask(model, guide, pool, known, labels=5, at_once=2)] == [0, 2, 4, 5]
    with pytest.raises(UserError, match="12 items without a label"):
        next(ask(model, guide, pool, known, labels=13))


def test_curves_begin_with_the_same_labels_and_are_means_over_queries_of_each_task():
    pool, (model, guide) = pool_of(), (part.double() for part in objective_of())
    known, asked = first_known(pool, 1, seed=0), (Acquisition.RANDOM, Acquisition.BALD)
    found = curves(model, guide, pool, known, asked, labels=2, num_samples=8, seed=5)
    assert list(found) == list(asked)
    for acquisition, of_one in found.items():
        *_, last = ask(model, guide, pool, known, labels=2, acquisition=acquisition, num_samples=8, seed=5)
        probabilities = last.predicted.probabilities()
        right = (probabilities.argmax(-1) == pool.query_y).double().mean(-1)
        nll = -probabilities.gather(-1, pool.query_y[..., None])[..., 0].log().mean(-1)
        torch.testing.assert_close(of_one["accuracy"][2], right)
        torch.testing.assert_close(of_one["nll"][2], nll)
        assert of_one["nll"].shape == (3, 5)
    assert torch.equal(found["random"]["nll"][0], found["bald"]["nll"][0])
    assert not torch.equal(found["random"]["nll"][2], found["bald"]["nll"][2])
    with pytest.raises(UserError, match="query_y"):
        curves(model, guide, pool.unlabelled(), known, asked, labels=2)


def test_errors_of_targets_are_those_of_the_mean():
    objective, pool = build_regression("linear", 1.0), Problem("linear").tasks(4, queries=6, seed=1)
    predicted = predictive(objective.model, objective.guide, pool, num_samples=16)
    found = measures(predicted, pool.query_y)
    error = predicted.labels.mean.mean(0) - pool.query_y
    torch.testing.assert_close(found["mse"], error.square().mean(-1))
    torch.testing.assert_close(found["nll"], -predicted.log_predictive(pool.query_y).mean(-1))


def test_targets_are_asked_for_too():
    objective, pool = build_regression("linear", 1.0), Problem("linear").tasks(200, queries=20, seed=1)
    known = first_known(pool, 1, seed=0)
    how = {"labels": 6, "num_samples": 64}
    errors = {}
    for acquisition in (Acquisition.RANDOM, Acquisition.BALD, Acquisition.VARIANCE):
        turns = list(ask(objective.model, objective.guide, pool, known, acquisition=acquisition, **how))
        errors[acquisition] = [float((t.predicted.labels.mean.mean(0) - pool.query_y).square().mean()) for t in turns]
    assert errors["bald"] == errors["variance"], "of equal noise both want the same"
    assert errors["bald"][0] == errors["random"][0]
    assert errors["bald"][3] < errors["random"][3]
    assert errors["bald"][6] < errors["bald"][0]
