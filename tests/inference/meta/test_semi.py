"""The semi protocol: which labels are hidden, what is made of the items, and paired gains, by hand."""

from functools import partial

import pytest
import torch

from data.episodes import EpisodeSampler
from data.errors import UserError
from data.mixed import VariedSampler
from data.seeding import mix_seed
from data.semi_supervised import UNLABELLED, SemiSampler, Unlabelled, labelled_part, present
from inference.evaluation.evaluate import evaluate, predictions
from inference.evaluation.predictive import predictive
from inference.meta.comparison import MetaRecord, format_comparison
from inference.meta.family_options import MetaOptions
from inference.meta.learner import TEST_SEED
from inference.meta.mapping import map_items
from inference.meta.method_training import own_tasks
from inference.meta.methods import METHODS
from inference.meta.semi import compare_semi, records_of, scores_of
from tests.inference.meta.test_comparison import BANK, learner

SEMI = {"shot": 5, "protocols": "standard,semi"}


def records(method, **given):
    one, options = learner(method, **{**SEMI, **given})
    return records_of(one, map_items(one.space, BANK), options, {})


def test_a_method_that_makes_nothing_of_them_has_its_labelled_items_alone():
    (found,) = records("prototypical")
    assert (found.labels, found.shot, found.unlabelled, found.gain, found.split) == (1, 5, "left-out", None, "test")
    assert found.kind == "1 of 5 labels, others left out"
    assert found.transductive is False


@pytest.mark.parametrize("method", [pytest.param("graph:width=4:layers=1", marks=pytest.mark.slow), "tpn", "sib"])
def test_gains_are_of_the_same_tasks(method):
    one, options = learner(method, **SEMI)
    part = map_items(one.space, BANK)
    without, found = records_of(one, part, options, {})
    assert (without.unlabelled, without.gain) == ("left-out", None)
    assert found.unlabelled == METHODS[one.variant.method].unlabelled.value
    assert found.gain == pytest.approx(found.accuracy - without.accuracy, abs=1e-6)
    assert found.nll != without.nll
    assert (without.transductive, found.transductive) == (method in ("tpn", "sib"),) * 2
    sampler = SemiSampler(EpisodeSampler(part, options.spec()), 0.8)
    views = Unlabelled.LEFT_OUT, METHODS[one.variant.method].unlabelled
    apart, beside = (scores_of(one, sampler, view, 30)[1] for view in views)
    difference = beside - apart
    assert len(difference) == 30
    assert found.gain_ci95 == pytest.approx(1.96 * float(difference.std()) / 30**0.5)
    assert 0 < found.gain_ci95 < found.ci95 + without.ci95


def test_without_the_items_it_is_what_tasks_of_as_many_labels_have():
    """The labelled part is a task of its own, and the other labels were never read."""
    one, options = learner("tpn", **SEMI)
    sampler = SemiSampler(EpisodeSampler(map_items(one.space, BANK), options.spec()), 0.8)
    scores, accuracies = scores_of(one, sampler, Unlabelled.LEFT_OUT, 30)
    drawn = [episode for episode, _ in predictions(one.model, one.guide, sampler, tasks=30, seed=mix_seed(TEST_SEED))]
    few = labelled_part(drawn[0])
    assert few.support_y.shape == (30, 5)
    expected = evaluate(one.model, one.guide, few, tasks=30, seed=0)
    assert scores.accuracy == pytest.approx(expected.accuracy)
    assert scores.nll == pytest.approx(expected.nll)
    assert float(accuracies.mean()) == pytest.approx(expected.accuracy)


def test_unlabelled_queries_are_seen_by_the_guide_and_scored_by_nobody():
    one, options = learner("sib", **SEMI)
    sampler = SemiSampler(EpisodeSampler(map_items(one.space, BANK), options.spec()), 0.8)
    view = partial(present, how=Unlabelled.QUERIES)
    ((episode, predicted),) = predictions(one.model, one.guide, sampler, tasks=4, seed=0, view=view)
    assert predicted.labels.batch_shape[1:] == (4, 25)
    assert (episode.support_y == UNLABELLED).sum(-1).tolist() == [20] * 4
    queries = torch.cat([episode.query_x, episode.support_x[episode.support_y < 0].view(4, 20, -1)], dim=1)
    seen = labelled_part(episode)._replace(query_x=queries, query_y=None)
    both = predictive(one.model, one.guide, seen, query_x=episode.query_x, num_samples=400, seed=1)
    torch.testing.assert_close(predicted.probabilities(), both.probabilities(), rtol=0, atol=0.15)
    assert predicted.rate is not None
    torch.testing.assert_close(predicted.rate, both.rate, msg="the same posterior")


def test_what_options_hide():
    options = MetaOptions(methods="graph,tpn,sib", test_shot="5,10", unlabelled=0.4, **SEMI)
    assert [(s.shot, options.hidden(s.shot), s.balanced) for s in options.hidden_specs()] == [(5, 2, True), (10, 4, True)]
    assert [s.shot for s in options.test_specs()] == [5, 10], "of the standard protocol"
    assert [options.hides(name) for name in ("graph", "tpn", "sib")] == [True, True, False]
    assert not MetaOptions(methods="graph", shot=5).hides("graph")
    assert MetaOptions(methods="graph", shot=5).hidden_specs() == []
    assert MetaOptions(methods="graph", shot=5, protocols="semi").test_specs() == []
    assert len(MetaOptions(methods="graph", shot=5, protocols="imbalanced,semi", unlabelled=0.4).hidden_specs()) == 1
    for refused in ({"shot": 1}, {"unlabelled": 0.05}, {"unlabelled": 1.0}, {"unlabelled": 2.0}, {"test_shot": "5,1"}):
        with pytest.raises(UserError, match="must hide one and leave one"):
            MetaOptions(methods="tpn", **{**SEMI, **refused})


def test_a_method_that_has_to_learn_it_is_trained_without_some_of_the_labels():
    one, options = learner("graph", **SEMI)
    sampler = own_tasks(one, options, BANK)
    assert isinstance(sampler, SemiSampler)
    assert (sampler.share, sampler.every) == (0.8, 2)
    assert isinstance(own_tasks(*learner("graph", shot=5), BANK), VariedSampler)
    assert isinstance(own_tasks(*learner("sib", **SEMI), BANK), VariedSampler)


def test_nothing_is_compared_where_nobody_asks(tmp_path):
    one, options = learner("tpn", shot=5)
    assert compare_semi({one.variant: one}, options, None, tmp_path) == []


def test_the_table_has_rows_of_their_own():
    rows = [*records("tpn"), *records("prototypical")]
    usual = MetaRecord(**{**vars(rows[0]), "labels": None, "unlabelled": None})
    lines = format_comparison([*rows, usual]).splitlines()
    assert "gain %" in lines[0]
    assert sum("1 of 5 labels, others left out" in line for line in lines) == 2
    assert sum("1 of 5 labels, others unlabelled" in line for line in lines) == 1
    assert sum("balanced" in line for line in lines) == 1
    assert f"{100 * rows[1].gain:+.2f} ± {100 * rows[1].gain_ci95:.2f}" in format_comparison(rows)
    assert "gain" not in format_comparison([usual])
