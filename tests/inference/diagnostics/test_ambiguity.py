"""Classifiers that go by known pairs of attributes have known accuracy, coverage and likelihood."""

import itertools
import math

import pytest
import torch

from data.ambiguous import AttributeSampler
from inference.diagnostics.ambiguity import ambiguity, expected_coverage
from tests.data.test_ambiguous import PAIRS, attributes, numbered

pytestmark = pytest.mark.usefixtures("float64")

SURE = 0.9
N = 30


@pytest.fixture(scope="module")
def tasks():
    return AttributeSampler(numbered((45,) * 8), queries=N // 2, ambiguous=True, contested=True).sample(7, seed=1)


def by_pair(tasks, pair, sure=SURE):
    """Logits of a classifier that goes by a pair of attributes, with so much probability on its answer: ``[tasks, n, 2]``."""
    seen = attributes(tasks.query_x).bool()
    says = seen[..., PAIRS[pair][0]] & seen[..., PAIRS[pair][1]]
    one = torch.where(says, sure, 1 - sure)
    return torch.stack([1 - one, one], -1).log()


def agreement(tasks, pair, block):
    """Share of a block's queries that a pair gets right, ``[tasks]``."""
    inside = slice(N * block, N * (block + 1))
    return (by_pair(tasks, pair).argmax(-1) == tasks.query_y)[:, inside].double().mean(-1)


def test_one_answer_over_and_over_covers_one(tasks):
    found = ambiguity(by_pair(tasks, 1).expand(5, -1, -1, -1), tasks.query_y)
    assert (found.coverage == 1).all()
    assert (found.accuracy == 1).all()
    others = [agreement(tasks, 1, block) for block in (0, 2)]
    torch.testing.assert_close(found.reached, (1 + sum(others)) / 3)
    wrong = (2 - sum(others)) / 3
    nll = -(1 - wrong) * math.log(SURE) - wrong * math.log(1 - SURE)
    torch.testing.assert_close(found.nll, nll)
    torch.testing.assert_close(found.marginal_nll, nll)


def test_a_mixture_of_all_answers_covers_all_and_pays_for_the_choice_once(tasks):
    found = ambiguity(torch.stack([by_pair(tasks, pair) for pair in (0, 1, 2, 1)]), tasks.query_y)
    assert (found.coverage == 3).all()
    assert (found.accuracy == 1).all()
    assert (found.reached == 1).all()
    paid = (2 * math.log(4) + math.log(2)) / 3 / N  # one draw of four twice, two of four once; the others' share is negligible
    torch.testing.assert_close(found.nll, torch.full((7,), paid - math.log(SURE)), rtol=1e-6, atol=0)
    each = [-(by_pair(tasks, pair).gather(-1, tasks.query_y[..., None])[..., 0]) for pair in (0, 1, 2, 1)]
    marginal = -(-torch.stack(each)).exp().mean(0).log().mean(-1)
    torch.testing.assert_close(found.marginal_nll, marginal)


def test_two_of_three_answers_are_two(tasks):
    found = ambiguity(torch.stack([by_pair(tasks, pair) for pair in (2, 0, 2)]), tasks.query_y)
    assert (found.coverage == 2).all()
    missed = torch.stack([agreement(tasks, pair, 1) for pair in (0, 2)]).amax(0)
    torch.testing.assert_close(found.reached, (2 + missed) / 3)


def test_fewer_draws_cover_what_all_their_choices_do_on_average():
    owners = [0, 2, 0, 0, 1, 2, 0]
    given = torch.tensor([[owners.count(answer) for answer in range(3)], [7, 0, 0]])
    for draws in range(1, 8):
        chosen = [len(set(some)) for some in itertools.combinations(owners, draws)]
        expected = torch.tensor([sum(chosen) / len(chosen), 1.0])
        torch.testing.assert_close(expected_coverage(given, draws), expected)


def test_draws_are_counted_by_the_answer_that_they_are_given_to(tasks):
    found = ambiguity(torch.stack([by_pair(tasks, pair) for pair in (2, 0, 2)]), tasks.query_y)
    assert (found.given == torch.tensor([1, 0, 2])).all()
    torch.testing.assert_close(expected_coverage(found.given, 3), found.coverage)


@pytest.mark.parametrize("draws", [0, 4])
def test_no_more_draws_are_taken_than_there_are(draws):
    with pytest.raises(ValueError, match=f"{draws} of 3 draws"):
        expected_coverage(torch.tensor([[1, 0, 2]]), draws)


def test_who_knows_nothing_guesses(tasks):
    found = ambiguity(torch.zeros(3, 7, 3 * N, 2), tasks.query_y)
    torch.testing.assert_close(found.nll, torch.full((7,), math.log(2)))
    torch.testing.assert_close(found.marginal_nll, torch.full((7,), math.log(2)))
    torch.testing.assert_close(found.accuracy, torch.full((7,), 0.5))


def test_a_task_without_numbers_covers_nothing(tasks):
    draws = torch.stack([by_pair(tasks, pair) for pair in (2, 0, 2)])
    draws[1, 4, 7] = torch.nan
    found = ambiguity(draws, tasks.query_y)
    for name in ("accuracy", "coverage", "reached", "nll"):
        assert getattr(found, name).isnan().tolist() == [task == 4 for task in range(7)], name
    assert found.given.sum(-1).tolist() == [3, 3, 3, 3, 0, 3, 3]
    assert expected_coverage(found.given, 2).isnan().tolist() == [task == 4 for task in range(7)]
    assert expected_coverage(found.given[4:5], 2).isnan().all()


def test_tasks_do_not_mix(tasks):
    draws = torch.randn(4, 7, 3 * N, 2)
    whole, alone = ambiguity(draws, tasks.query_y), ambiguity(draws[:, 2:3], tasks.query_y[2:3])
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one[2:3], other)


def test_queries_are_blocks_of_one_size(tasks):
    with pytest.raises(ValueError, match="7 queries are not 3 blocks"):
        ambiguity(torch.zeros(1, 7, 7, 2), torch.zeros(7, 7).long())
