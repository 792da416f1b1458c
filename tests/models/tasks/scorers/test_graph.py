"""The graph network: with fixed adjacencies it is siamese and prototypical networks, exactly."""

import pytest
import torch
from torch import nn

from models.tasks.predictors import DistancePredictor
from models.tasks.scorers.base import MeansScorer
from models.tasks.scorers.graph import GraphLayer, GraphScorer, PairwiseAdjacency
from models.tasks.scorers.pairs import PairScorer

WAY, DIM = 3, 4
pytestmark = pytest.mark.usefixtures("float64")


def tasks(shot: int):
    """Features are positive, so that a leaky rectifier leaves them as they are."""
    support_y = torch.arange(WAY).repeat_interleave(shot).expand(2, -1)
    return torch.rand(2, WAY * shot, DIM), support_y, torch.rand(2, 5, DIM)


class Fixed(nn.Module):
    """An adjacency that is a given function of the nodes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, nodes, listeners, *, shared=False):
        return self.function(nodes)[..., :listeners, :]


def softmax_of_others(scores):
    return scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool), -torch.inf).softmax(-1)


def pick(layer: GraphLayer, adjacency, columns: slice) -> None:
    """Fix a layer: what is heard through the adjacency, of these features alone."""
    layer.adjacency = Fixed(adjacency)
    size = layer.linear.in_features // 2
    with torch.no_grad():
        layer.linear.bias.zero_()
        layer.linear.weight.copy_(torch.cat([torch.zeros(size, size), torch.eye(size)], dim=-1)[columns])


@pytest.mark.parametrize("shot", [1, 3])
def test_siamese_weights_give_the_siamese_network(shot):
    """φ a distance, Ã = softmax(−φ), the label read off by the last layer."""
    arguments = tasks(shot)
    scorer = GraphScorer(DIM, WAY, width=None, layers=0)
    distances = lambda nodes: torch.cdist(nodes[..., :DIM], nodes[..., :DIM], p=1)  # noqa: E731
    pick(scorer.last, lambda nodes: softmax_of_others(-distances(nodes)), slice(DIM, DIM + WAY))
    expected = PairScorer(DIM)(*arguments, WAY).softmax(-1)
    torch.testing.assert_close(scorer(*arguments, WAY), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shot", [1, 3])
def test_prototypical_weights_give_prototypical_networks(shot):
    """Ã⁽⁰⁾ averages the items of a class, Ã⁽¹⁾ is the softmax of squared distances to what that made."""
    support_x, support_y, query_x = tasks(shot)
    scorer = GraphScorer(DIM, WAY, width=None, layers=1, growth=DIM)
    names = torch.cat([torch.full((2, 1), WAY), support_y], dim=1)  # the query is a class of its own
    same = (names[:, :, None] == names[:, None, :]).double()
    averages = (same / same.sum(-1, keepdim=True))[:, None].expand(-1, 5, -1, -1)
    pick(scorer.layers[0], lambda nodes: averages, slice(0, DIM))
    squared = lambda nodes: torch.cdist(nodes[..., -DIM:], nodes[..., -DIM:]).square()  # noqa: E731
    pick(scorer.last, lambda nodes: softmax_of_others(-0.5 * squared(nodes)), slice(DIM, DIM + WAY))
    expected = MeansScorer(DistancePredictor(1.0))(support_x, support_y, query_x, WAY).softmax(-1)
    torch.testing.assert_close(scorer(support_x, support_y, query_x, WAY), expected, rtol=1e-10, atol=1e-10)


def test_adjacency_is_a_softmax_over_other_nodes_of_a_symmetric_score():
    adjacency, nodes = PairwiseAdjacency(4, (6,)), torch.randn(2, 5, 4)
    rows = adjacency(nodes, 5)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 5))
    assert torch.equal(rows.diagonal(0, -2, -1), torch.zeros(2, 5))
    scores = adjacency.network((nodes[:, :, None] - nodes[:, None]).abs()).squeeze(-1)
    torch.testing.assert_close(scores, scores.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows, softmax_of_others(scores), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adjacency(nodes, 2), rows[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("listeners", "pairs"), [(5, 10), (2, 7), (1, 4)])
def test_each_pair_is_scored_once_and_what_graphs_share_once_for_all(listeners, pairs):
    adjacency, items = PairwiseAdjacency(4, (6,)), torch.randn(2, 1, 4, 4).expand(-1, 3, -1, -1)
    nodes = torch.cat([torch.randn(2, 3, 1, 4), items], dim=-2)  # three graphs a task, the first node is each one's own
    scored = []
    adjacency.network.register_forward_hook(lambda module, given, scores: scored.append(scores.numel()))
    apart, together = adjacency(nodes, listeners), adjacency(nodes, listeners, shared=True)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    assert scored == [6 * pairs, 6 * 4, 2 * (pairs - 4)]
    scores = adjacency.network((nodes[..., :, None, :] - nodes[..., None, :, :]).abs()).squeeze(-1)
    torch.testing.assert_close(apart, softmax_of_others(scores)[..., :listeners, :], rtol=1e-12, atol=1e-12)


def test_layers_hear_themselves_and_others():
    layer, nodes = GraphLayer(PairwiseAdjacency(4, (6,)), 4, 3), torch.randn(2, 5, 4)
    itself, others = layer.linear.weight.split(4, dim=-1)
    expected = nodes @ itself.T + layer.adjacency(nodes, 5) @ nodes @ others.T + layer.linear.bias
    torch.testing.assert_close(layer(nodes), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(nodes, 1), expected[:, :1], rtol=1e-12, atol=1e-12)


def test_labels_of_nodes_are_one_hot_or_uniform_and_the_query_comes_first():
    support_x, _, query_x = tasks(1)
    nodes = GraphScorer(DIM, WAY, width=None).nodes(support_x, torch.tensor([[0, -1, 2]] * 2), query_x, WAY)
    assert torch.equal(nodes[:, 3, 0, :DIM], query_x[:, 3])
    assert torch.equal(nodes[:, 3, 1:, :DIM], support_x)
    third = [1 / 3] * 3
    torch.testing.assert_close(nodes[1, 2, :, DIM:], torch.tensor([third, [1, 0, 0], third, [0, 0, 1]]))


def test_the_nodes_of_every_layer_go_on_to_the_next():
    scorer = GraphScorer(DIM, WAY, width=6, layers=2, growth=5, widths=(7, 8))
    assert [layer.linear.in_features // 2 for layer in (*scorer.layers, scorer.last)] == [9, 14, 19]
    assert [layer.linear.out_features for layer in (*scorer.layers, scorer.last)] == [5, 5, WAY]
    arguments = tasks(2)
    nodes = scorer.nodes(*arguments, WAY)
    for layer in scorer.layers:
        nodes = torch.cat([nodes, nn.functional.leaky_relu(layer(nodes))], dim=-1)
    torch.testing.assert_close(scorer(*arguments, WAY), scorer.last(nodes)[..., 0, :], rtol=1e-12, atol=1e-12)
