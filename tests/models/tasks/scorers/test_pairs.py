"""The siamese network: symmetric pairs, and classes by Bayes' rule counted out."""

import itertools
import math

import pytest
import torch

from models.tasks.scorers.pairs import PairScorer

pytestmark = pytest.mark.usefixtures("float64")


def learned(width: int | None = 6) -> PairScorer:
    scorer = PairScorer(4, width=width)
    with torch.no_grad():
        scorer.weights.normal_()
        scorer.bias.fill_(0.7)
    return scorer


def test_a_pair_is_a_weighted_distance_of_what_the_network_gives():
    scorer, first, second = learned(), torch.randn(5, 4), torch.randn(5, 4)
    linear = scorer.embedding[0]
    h = [(x @ linear.weight.T + linear.bias).sigmoid() for x in (first, second)]
    expected = ((h[0] - h[1]).abs() * scorer.weights).sum(-1) + 0.7
    torch.testing.assert_close(scorer.same(first, second), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(scorer.same(first, second), scorer.same(second, first))


def test_pairs_teach_every_parameter():
    scorer = learned()
    scorer.same(torch.randn(5, 4), torch.randn(5, 4)).sigmoid().log().sum().backward()
    assert all(bool(p.grad.any()) for p in scorer.parameters())


def test_classes_follow_from_pairs_by_bayes_rule():
    """Of all answers that n pairs can have, those in which exactly one is "same"."""
    scorer, support_x, query_x = learned(), torch.randn(1, 4, 4), torch.randn(1, 3, 4)
    scores = scorer(support_x, torch.arange(4)[None], query_x, 4).softmax(-1)
    for query in range(3):
        same = scorer.same(query_x[0, query].expand(4, -1), support_x[0]).sigmoid().tolist()
        joint = [0.0] * 4
        for answers in itertools.product((0, 1), repeat=4):
            if sum(answers) == 1:
                joint[answers.index(1)] = math.prod(s if a else 1 - s for s, a in zip(same, answers, strict=True))
        expected = torch.tensor(joint) / sum(joint)
        torch.testing.assert_close(scores[0, query], expected, rtol=1e-12, atol=1e-12)


def test_several_items_of_a_class_give_the_mean_of_their_odds():
    scorer, support_x, query_x = learned(None), torch.randn(1, 5, 4), torch.randn(1, 3, 4)
    support_y = torch.tensor([[0, 1, 0, 1, 0]])
    odds = scorer.same(query_x[:, :, None], support_x[:, None]).exp()
    expected = torch.stack([odds[..., [0, 2, 4]].mean(-1), odds[..., [1, 3]].mean(-1)], dim=-1)
    torch.testing.assert_close(scorer(support_x, support_y, query_x, 2).exp(), expected, rtol=1e-12, atol=1e-12)


def test_with_large_weights_the_nearest_item_wins():
    scorer, support_x, query_x = PairScorer(4), torch.randn(8, 6, 4), torch.randn(8, 5, 4)
    support_y = (torch.arange(6) % 3).expand(8, -1)
    with torch.no_grad():
        scorer.weights.fill_(-1000.0)
    nearest = support_y.gather(1, torch.cdist(query_x, support_x, p=1).argmin(-1))
    assert torch.equal(scorer(support_x, support_y, query_x, 3).argmax(-1), nearest)
