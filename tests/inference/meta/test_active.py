"""The active protocol: labels that are chosen against as many at random, on the same tasks, by hand."""

from functools import partial

import pytest
import torch

from data.episodes import EpisodeSampler
from data.errors import UserError
from data.mixed import VariedSampler
from data.seeding import mix_seed
from data.semi_supervised import SemiSampler, Unlabelled, present, sealed
from inference.active import Acquisition, ask, curves, first_known
from inference.evaluation.evaluate import batches
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.predictive import predictive
from inference.meta import active
from inference.meta.active import FIRST_LABELS, active_figures, asked_by_itself, asked_for, compare_active, pools, records_of
from inference.meta.comparison import MetaRecord, format_comparison
from inference.meta.family_options import MetaOptions
from inference.meta.learner import TEST_SEED
from inference.meta.mapping import map_items
from inference.meta.method_training import own_tasks
from tests.inference.meta.test_comparison import BANK, learner

ACTIVE = {"shot": 5, "protocols": "standard,active"}
GRAPH = "graph-active:width=4:layers=1"


def records(method, **given):
    one, options = learner(method, **{**ACTIVE, **given})
    return records_of(one, map_items(one.space, BANK), options, {})


@pytest.mark.parametrize(("method", "asked"), [("prototypical", ["random", "entropy"]), ("sib", ["random", "entropy", "bald"])])
def test_records_are_of_the_last_turn_and_gains_of_the_same_tasks(method, asked):
    one, options = learner(method, asked=3, **ACTIVE)
    part = map_items(one.space, BANK)
    found = records_of(one, part, options, {"given": "x"})
    assert [record.acquisition for record in found] == asked
    (pool,) = batches(EpisodeSampler(part, options.spec()), 30, mix_seed(TEST_SEED))
    known = first_known(pool, 1, seed=mix_seed(TEST_SEED, 0, FIRST_LABELS))
    expected = curves(one.model, one.guide, pool, known, [Acquisition(a) for a in asked], labels=3)
    for record in found:
        accuracy = expected[record.acquisition]["accuracy"]
        assert (record.labels, record.asked, record.shot, record.split, record.given) == (1, 3, 5, "test", "x")
        assert record.after == pytest.approx(accuracy.mean(-1).tolist())
        assert record.after_ci95 == pytest.approx([confidence_interval(turn) for turn in accuracy])
        assert record.accuracy == pytest.approx(record.after[-1])
        *_, last = ask(one.model, one.guide, pool, known, acquisition=Acquisition(record.acquisition), labels=3)
        likelihood = last.predicted.labels.log_prob(pool.query_y)
        assert record.distortion == pytest.approx(-float(likelihood.sum(-1).mean()), rel=1e-5)
        assert record.rate == (None if method == "prototypical" else pytest.approx(float(last.predicted.rate.mean()), rel=1e-5))
        assert record.nll == pytest.approx(float(expected[record.acquisition]["nll"][-1].mean()), rel=1e-5)
        gain = accuracy[-1] - expected["random"]["accuracy"][-1]
        if record.acquisition == "random":
            assert (record.gain, record.gain_ci95) == (None, None)
        else:
            assert record.gain == pytest.approx(float(gain.mean()))
            assert record.gain_ci95 == pytest.approx(1.96 * float(gain.std()) / 30**0.5)
        assert record.after[0] == found[0].after[0], "before the first label they are the same"


def test_a_network_that_asks_by_itself_is_held_against_itself_at_random():
    one, options = learner(GRAPH, **ACTIVE)
    part = map_items(one.space, BANK)
    at_random, own = records_of(one, part, options, {})
    assert (own.acquisition, own.asked, at_random.asked) == ("attention", 1, 1)
    (pool,) = pools(SemiSampler(EpisodeSampler(part, options.spec()), 0.8, askable=True), 30)
    predicted = partial(predictive, one.model, one.guide)

    def right(episode):
        return (predicted(episode).probabilities().argmax(-1) == pool.query_y).double().mean(-1)

    closed = right(present(pool, Unlabelled.SUPPORT, pool.support_y >= 0))
    assert own.after == pytest.approx([float(closed.mean()), float(right(pool).mean())])
    assert at_random.after[0] == own.after[0]
    assert own.gain == pytest.approx(own.after[1] - at_random.after[1])
    counted = asked_by_itself(one, SemiSampler(EpisodeSampler(part, options.spec()), 0.8, askable=True), 30)
    again = {a: c.accuracies for a, c in counted.items()}
    difference = again["attention"][1] - again["random"][1]
    assert own.gain_ci95 == pytest.approx(1.96 * float(difference.std()) / 30**0.5)
    assert float(again["random"][1].mean()) == pytest.approx(at_random.after[1]), "the same draws again"
    assert one.model.scorer.at_random is False


def test_at_random_its_labels_are_those_of_any_item():
    """With weights that only read the labels that are asked for, a query is right where the item is of its class."""
    one, options = learner("graph-active:layers=1", **ACTIVE)
    part, scorer = map_items(one.space, BANK), one.model.scorer
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.zero_()
        torch.nn.init.eye_(scorer.embedding.weight)
        scorer.attention.weight[: scorer.embedded] = 1.0
        size = scorer.last.linear.in_features // 2
        scorer.last.linear.weight[:, size + scorer.embedded : size + scorer.embedded + 5] = torch.eye(5)
    counted = asked_by_itself(one, SemiSampler(EpisodeSampler(part, options.spec()), 0.8, askable=True), 60)
    at_random, own = (float(counted[a].accuracies[1].mean()) for a in (Acquisition.RANDOM, Acquisition.ATTENTION))
    assert at_random == pytest.approx(1 / 5, abs=4 * (0.16 / 60 / 25) ** 0.5), "no better than guessing"
    assert own > 0.5, "items near a query are of its class"


def test_labels_that_are_asked_for_are_new_to_a_method_that_does_not_ask_itself():
    one, options = learner("prototypical", **ACTIVE)
    sampler = EpisodeSampler(map_items(one.space, BANK), options.spec())
    few, more = (asked_for(one, sampler, 20, labels=2, asked=asked) for asked in (1, 2))
    for acquisition, counted in few.items():
        assert torch.equal(counted.accuracies, more[acquisition].accuracies[:2])
        assert counted.sums.scores().episodes == 20


def test_tasks_are_as_many_at_once_as_fit(monkeypatch):
    _, options = learner("prototypical", **ACTIVE)
    sampler = EpisodeSampler(BANK, options.spec())
    whole = list(pools(sampler, 60))
    assert [len(pool.query_x) for pool in whole] == [50, 10]
    monkeypatch.setattr(active, "tasks_that_fit", lambda episode, draws: 20)
    parts = list(pools(sampler, 60))
    assert [len(pool.query_x) for pool in parts] == [20, 20, 10, 10]
    assert torch.equal(torch.cat([p.query_x for p in parts]), torch.cat([p.query_x for p in whole]))


def test_a_network_that_asks_is_trained_with_labels_that_it_may_ask_for():
    sampler = own_tasks(*learner(GRAPH, **ACTIVE), BANK)
    assert isinstance(sampler, SemiSampler)
    assert (sampler.share, sampler.every, sampler.askable) == (0.8, 2, True)
    assert isinstance(own_tasks(*learner("graph", **ACTIVE), BANK), VariedSampler)
    semi = own_tasks(*learner("graph", shot=5, protocols="semi"), BANK)
    assert isinstance(semi, SemiSampler)
    assert not semi.askable


def test_what_options_ask_for():
    options = MetaOptions(methods="graph-active", test_shot="5,10", unlabelled=0.4, asked=10, **ACTIVE)
    assert [(s.shot, options.hidden(s.shot), s.balanced) for s in options.hidden_specs()] == [(5, 2, True), (10, 4, True)]
    assert (options.semi, options.active, options.hides("graph-active"), options.hides("tpn")) == (False, True, True, False)
    refusals = (
        ({"asked": 11}, "`asked=11` is more than the 10 hidden labels of a task"),
        ({"shot": 1, "test_shot": None}, "the active protocol hides 0 of a class's 1 labels"),
        ({"protocols": "standard", "methods": "graph", "unlabelled": 0.8}, "`asked=10` is about the active protocol"),
        ({"protocols": "semi", "asked": 5}, "graph-active learns which label to ask for: add active to `protocols`"),
        ({"protocols": "standard", "methods": "graph", "asked": 5}, "`unlabelled=0.4` is a share of"),
    )
    given = {"methods": "graph-active", "test_shot": "5,10", "unlabelled": 0.4, "asked": 10, **ACTIVE}
    for changed, words in refusals:
        with pytest.raises(UserError, match=words):
            MetaOptions(**{**given, **changed})


def test_nothing_is_compared_where_nobody_asks(tmp_path):
    one, options = learner("tpn", shot=5)
    assert compare_active({one.variant: one}, options, None, tmp_path) == []


def test_the_table_and_the_picture_say_what_was_asked_for():
    rows = [*records(GRAPH), *records("prototypical", asked=2)]
    kinds = [row.kind for row in rows]
    assert kinds == [
        "1 of 5 labels, 1 more at random",
        "1 of 5 labels, 1 more by attention",
        "1 of 5 labels, 2 more at random",
        "1 of 5 labels, 2 more by entropy",
    ]
    lines = format_comparison(rows).splitlines()
    assert "gain %" in lines[0]
    assert all(sum(kind in line for line in lines) == 1 for kind in kinds)
    usual = MetaRecord(**{**vars(rows[0]), "labels": None, "acquisition": None})
    drawn = active_figures([usual, *rows], "letters", 30)
    assert list(drawn) == ["labels_asked_for"]
    figure = drawn["labels_asked_for"]()
    assert [axis.get_title() for axis in figure.axes] == ["graph-active", "prototypical"]
    assert figure.axes[1].lines[1].get_ydata().tolist() == pytest.approx([100 * value for value in rows[3].after])
    wider = MetaRecord(**{**vars(rows[0]), "way": 4})
    assert list(active_figures([*rows, wider], "letters", 30)) == ["labels_asked_for", "labels_asked_for_2"]


def test_sealed_labels_stay_sealed_on_the_way_to_the_program():
    _, options = learner(GRAPH, **ACTIVE)
    (pool,) = pools(SemiSampler(EpisodeSampler(BANK, options.spec()), 0.8, askable=True), 3)
    opened = sealed(pool.support_y).where(pool.support_y < 0, pool.support_y)
    for c in range(5):
        assert (opened == c).sum(-1).tolist() == [5] * 3
        assert (pool.support_y == c).sum(-1).tolist() == [1] * 3
