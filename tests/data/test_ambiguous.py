"""Ambiguous tasks: which attributes items have, on which side, and that each block has another right answer."""

import math

import pytest
import torch

from data.ambiguous import AttributeSampler, OnePairSampler, fewer_queries, sampler_of
from data.episodes import Attributes, EpisodeSampler, TaskSpec
from data.errors import UserError
from data.items import LabelledItems

PAIRS = ((0, 1), (0, 2), (1, 2))


def numbered(counts=(30,) * 8):
    """Items whose value is class · 1000 + number, in shuffled order."""
    labels = torch.repeat_interleave(torch.arange(8), torch.tensor(counts))
    items = labels * 1000 + torch.cat([torch.arange(n) for n in counts])
    order = torch.randperm(len(items))
    return LabelledItems(items[order, None], labels[order], tuple("abcdefgh"))


def attributes(x):
    """``[tasks, n, 3]`` of zeros and ones."""
    return x // 1000 >> torch.arange(3) & 1


@pytest.mark.parametrize("ambiguous", [False, True])
def test_tasks_are_balanced_seeded_and_without_items_twice(ambiguous):
    sampler = AttributeSampler(numbered((30, 31, 40, 30, 33, 30, 30, 35)), shot=3, queries=4, ambiguous=ambiguous)
    episode, again, other = (sampler.sample(50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(episode.query_x, again.query_x)
    assert not torch.equal(episode.query_x, other.query_x)
    assert episode.way == 2
    assert (episode.support_y.sum(-1) == 3).all()
    blocks = 3 if ambiguous else 1
    assert episode.query_y.shape == (50, 8 * blocks)
    assert (episode.query_y.unflatten(-1, (blocks, 8)).sum(-1) == 4).all()
    for task in torch.cat([episode.support_x, episode.query_x], 1)[..., 0]:
        assert len(task.unique()) == len(task)
    many = sampler.sample(400, seed=0)
    assert len(torch.cat([many.support_x, many.query_x], 1).unique()) == len(sampler.items), "all items are drawn"
    torch.testing.assert_close(sampler.on(sampler.items + 1).sample(50, seed=1).query_x, episode.query_x + 1)


def test_each_task_goes_by_a_pair_and_the_third_attribute_is_at_random():
    episode = AttributeSampler(numbered(), shot=5, queries=15).sample(900, seed=0)
    seen = torch.cat([attributes(episode.support_x), attributes(episode.query_x)], 1)
    labels = torch.cat([episode.support_y, episode.query_y], 1)
    agree = seen == labels[..., None]
    by = agree.all(1)  # [tasks, attributes]
    assert (by.sum(-1) == 2).all()
    assert float((by.float().mean(0) - 2 / 3).abs().max()) < 4 * (2 / 9 / 900) ** 0.5
    third = agree.float().mean(1)[~by]
    assert float(third.mean()) == pytest.approx(0.5, abs=4 * 0.5 / (900 * 40) ** 0.5)
    assert float(third.var()) == pytest.approx(0.25 / 40, rel=0.25), "independent from item to item"


def test_an_ambiguous_support_fits_all_pairs_and_a_block_one():
    episode = AttributeSampler(numbered(), shot=5, queries=15, ambiguous=True).sample(20, seed=0)
    assert (attributes(episode.support_x) == episode.support_y[..., None]).all()
    right = attributes(episode.query_x) == episode.query_y[..., None]
    for block, pair in enumerate(PAIRS):
        inside = right[:, 30 * block : 30 * (block + 1)]
        for attribute in range(3):
            assert (inside[..., attribute] == (attribute in pair)).all()


def test_a_contested_task_goes_by_both_of_a_pair():
    episode = AttributeSampler(numbered(), shot=5, queries=15, contested=True).sample(900, seed=0)
    seen = torch.cat([attributes(episode.support_x), attributes(episode.query_x)], 1).bool()
    labels = torch.cat([episode.support_y, episode.query_y], 1).bool()
    both = torch.stack([seen[..., a] & seen[..., b] for a, b in PAIRS], -1)
    by = (both == labels[..., None]).all(1)  # [tasks, pairs]
    assert (by.sum(-1) == 1).all(), "one pair alone explains a task"
    assert float((by.float().mean(0) - 1 / 3).abs().max()) < 4 * (2 / 9 / 900) ** 0.5
    of_pair = torch.stack([seen[..., a].int() + 2 * seen[..., b] for a, b in PAIRS], -1)[by[:, None].expand_as(both)]
    shares = torch.bincount(of_pair[~labels.flatten()], minlength=4) / (~labels).sum()
    assert float((shares[:3] - 1 / 3).abs().max()) < 4 * (2 / 9 / (900 * 20)) ** 0.5
    third = torch.stack([seen[..., 2], seen[..., 1], seen[..., 0]], -1)[by[:, None].expand_as(both)]
    assert float(third.float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / (900 * 40) ** 0.5)


def test_a_contested_query_is_of_class_1_by_one_pair_and_of_class_0_by_the_others():
    sampler = AttributeSampler(numbered((45,) * 8), shot=5, queries=15, ambiguous=True, contested=True)
    episode = sampler.sample(60, seed=0)
    assert (attributes(episode.support_x) == episode.support_y[..., None]).all()
    seen = attributes(episode.query_x).bool()
    assert (seen.sum(-1) == 2).all()
    answers = torch.stack([seen[..., a] & seen[..., b] for a, b in PAIRS], -1)  # [tasks, query, pairs]
    assert (answers.sum(-1) == 1).all()
    right = (answers == episode.query_y[..., None].bool()).unflatten(1, (3, 30)).float()
    for block in range(3):
        assert (right[:, block, :, block] == 1).all()
        for other in {0, 1, 2} - {block}:
            assert float(right[:, block, :, other].mean()) == pytest.approx(0.25, abs=4 * 0.25 / (60 * 15) ** 0.5)
    for task in episode.query_x[..., 0]:
        assert len(task.unique()) == len(task)


@pytest.mark.parametrize(("queries", "left"), [(15, 5), (5, 1), (2, 1)])
def test_fewer_queries_are_of_all_pairs_alike(queries, left):
    sampler = AttributeSampler(numbered((45,) * 8), shot=5, queries=queries, ambiguous=True, contested=True)
    episode = sampler.sample(3, seed=0)
    fewer = fewer_queries(episode)
    kept = [block * 2 * queries + y * queries + i for block in range(3) for y in range(2) for i in range(left)]
    assert torch.equal(fewer.query_x, episode.query_x[:, kept])
    assert torch.equal(fewer.query_y, episode.query_y[:, kept])
    assert torch.equal(fewer.support_x, episode.support_x)
    assert fewer_queries(episode.unlabelled()).query_y is None


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="lower `queries`"):
        AttributeSampler(numbered(), ambiguous=True, contested=True)
    with pytest.raises(UserError, match="lower `shot` or `queries`"):
        AttributeSampler(numbered((30, 30, 19, 30, 30, 30, 30, 30)))
    with pytest.raises(UserError, match="have 8"):
        AttributeSampler(LabelledItems(torch.zeros(2, 1), torch.tensor([0, 1]), ("a", "b")))
    with pytest.raises(UserError, match="`shot="):
        AttributeSampler(numbered(), shot=0)


def test_half_of_the_training_tasks_are_ambiguous_and_go_by_a_random_pair():
    episode = OnePairSampler(numbered((45,) * 8)).sample(60, seed=1)
    support, query = (attributes(part) for part in (episode.support_x, episode.query_x))
    assert episode.support_y.shape == (60, 2 * 5)
    assert episode.query_y.shape == (60, 2 * 15)
    ambiguous = (support == episode.support_y[..., None]).all((1, 2))
    assert int(ambiguous.sum()) == 30
    by = torch.stack([(query[..., a] * query[..., b] == episode.query_y).all(1) for a, b in PAIRS], -1)
    assert (by.sum(-1) == 1).all()
    assert (by[ambiguous].sum(0) > 3).all()


def test_tasks_to_train_on_are_those_of_other_items_too():
    sampler = OnePairSampler(numbered((45,) * 8), shot=2, queries=3)
    episode, other = sampler.sample(5, seed=2), sampler.on(-sampler.items).sample(5, seed=2)
    assert torch.equal(sampler.on(-sampler.items).items, -sampler.items)
    assert torch.equal(other.query_x, -episode.query_x)
    assert torch.equal(other.support_x, -episode.support_x)
    assert (episode.query_x.shape[:2], episode.support_x.shape[:2]) == ((5, 6), (5, 4))


@pytest.mark.parametrize("kind", [None, *Attributes])
def test_a_shape_says_what_draws_its_tasks(kind):
    spec = TaskSpec(2, 3, 4, attributes=kind)
    sampler = sampler_of(numbered((45,) * 8), spec)
    episode = sampler.sample(4, seed=0)
    assert sampler.spec == spec
    assert episode.support_y.shape == (4, 6)
    assert episode.query_y.shape[1] * math.log(2) == pytest.approx(spec.guess)
    assert isinstance(sampler, EpisodeSampler) is (kind is None)
    none = (attributes(episode.support_x) == episode.support_y[..., None]).all((1, 2)).float().mean()
    assert none == {None: none, Attributes.UNAMBIGUOUS: 0, Attributes.AMBIGUOUS: 1, Attributes.MIXED: 0.5}[kind]


def test_tasks_of_attributes_have_two_classes():
    with pytest.raises(UserError, match="give `way=2`"):
        TaskSpec(5, attributes="unambiguous")
    with pytest.raises(UserError, match="balanced"):
        TaskSpec(2, imbalance=2.0, attributes="unambiguous")
    with pytest.raises(UserError, match="choose one of unambiguous, ambiguous, mixed"):
        TaskSpec(2, attributes="plain")
    assert TaskSpec(2, attributes="unambiguous").attributes is Attributes.UNAMBIGUOUS
