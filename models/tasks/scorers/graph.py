"""Graph neural networks over a task's support items and one query."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tasks.scorers.base import Scorer, one_hot


class PairwiseAdjacency(nn.Module):
    """Ã_ij = softmax_{j ≠ i} MLP(|x_i − x_j|): how much node i listens to node j; symmetric before the softmax.

    Source: Garcia and Bruna 2018, section 4.2. The softmax leaves a node itself out, as in the authors' code. Layer norm
    stands where that has batch norm, through which tasks would see one another.

    Args:
        num_features: of a node.
        widths: of the hidden layers.
    """

    def __init__(self, num_features: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((num_features, *widths)):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.LeakyReLU()]
        self.network = nn.Sequential(*layers, nn.Linear((num_features, *widths)[-1], 1, bias=False))

    def forward(self, nodes: Tensor, listeners: int, *, shared: bool = False) -> Tensor:
        """Rows of Ã of the first ``listeners`` nodes, ``[..., n, F] -> [..., listeners, n]``; each pair is scored once.

        Args:
            shared: whether all nodes but the first are the same along the last dimension but two, that of a task's graphs:
                their pairs are then scored in the first graph alone.
        """
        count = nodes.shape[-2]
        first, second = torch.triu_indices(listeners, count, 1, device=nodes.device)  # those of the first node come first
        own = count - 1 if shared else len(first)
        scores = self.scores(nodes, first[:own], second[:own])
        if shared:
            others = self.scores(nodes[..., :1, :, :], first[own:], second[own:])
            scores = torch.cat([scores, others.expand(*scores.shape[:-1], -1)], dim=-1)
        place = torch.zeros(count, count, dtype=torch.long, device=nodes.device)
        numbers = torch.arange(len(first), device=nodes.device)
        place[first, second] = place[second, first] = numbers
        itself = torch.eye(listeners, count, dtype=torch.bool, device=nodes.device)
        rows = scores.index_select(-1, place[:listeners].flatten()).unflatten(-1, (listeners, count))
        return rows.masked_fill(itself, torch.finfo(nodes.dtype).min).softmax(-1)

    def scores(self, nodes: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The MLP of pairs of nodes, ``first`` and ``second`` of each by number: ``[..., n, F] -> [..., pairs]``."""
        return self.network((nodes.index_select(-2, first) - nodes.index_select(-2, second)).abs()).squeeze(-1)


class GraphLayer(nn.Module):
    """[x, Ãx] Θ: what a node says of itself and hears from others. Source: Garcia and Bruna 2018, section 4.2.

    Args:
        adjacency: Ã of nodes, called as :class:`PairwiseAdjacency`.
        num_features: of a node that comes in.
        outputs: features of a node that goes out.
    """

    def __init__(self, adjacency: nn.Module, num_features: int, outputs: int) -> None:
        super().__init__()
        self.adjacency = adjacency
        self.linear = nn.Linear(2 * num_features, outputs)

    def forward(self, nodes: Tensor, listeners: int | None = None, *, shared: bool = False) -> Tensor:
        """The first ``listeners`` nodes, all when not given: ``[..., n, F] -> [..., listeners, outputs]``.

        Args:
            shared: see :meth:`PairwiseAdjacency.forward`.
        """
        listeners = nodes.shape[-2] if listeners is None else listeners
        heard = self.adjacency(nodes, listeners, shared=shared) @ nodes
        return self.linear(torch.cat([nodes[..., :listeners, :], heard], dim=-1))


class GraphScorer(Scorer):
    """A graph network on the support items and one query, x⁽⁰⁾ = (φ(x), one-hot label), whose label is read off the query.

    A layer appends ρ([x, Ãx] Θ) to all nodes, ρ a leaky rectifier; the last gives the query's logits. The query's label and
    those of unlabelled support items, which take part, are uniform at first. Each query has a graph of its own, so that the
    other queries change nothing; graphs of all queries and tasks run as one batch.

    Labels pass through dense layers: the number of classes is fixed, and when classes are renamed the predictions do not just
    follow. The order of the support items is of no matter.

    Source: Garcia and Bruna 2018, "Few-shot learning with graph neural networks", section 4. In the authors' code there are two
    layers before the last, of 48 features, and adjacency networks of widths (192, 192, 96, 96); the defaults are
    smaller, because a task of n support items has n² pairs for each query.

    Args:
        num_features: D.
        way: of all tasks.
        width: of φ, a linear map; when ``None``, features stay what they are.
        layers: before the last.
        growth: features that a layer appends.
        widths: of the hidden layers of the adjacency networks.
    """

    def __init__(
        self,
        num_features: int,
        way: int,
        *,
        width: int | None = 64,
        layers: int = 2,
        growth: int = 48,
        widths: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.way = way
        self.embedding: nn.Module = nn.Identity() if width is None else nn.Linear(num_features, width)
        size = (num_features if width is None else width) + way
        sizes = [size + growth * layer for layer in range(layers + 1)]
        self.layers = nn.ModuleList(GraphLayer(PairwiseAdjacency(n, widths), n, growth) for n in sizes[:-1])
        self.last = GraphLayer(PairwiseAdjacency(sizes[-1], widths), sizes[-1], way)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        self.check_way(way)
        nodes = self.nodes(support_x, support_y, query_x, way)
        for number, layer in enumerate(self.layers):
            nodes = torch.cat([nodes, F.leaky_relu(layer(nodes, shared=not number))], dim=-1)
        return self.last(nodes, listeners=1).squeeze(-2)

    def nodes(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        """x⁽⁰⁾ of all graphs, the query first: ``[tasks, query, 1 + support, F]``."""
        support, query = self.embedding(support_x), self.embedding(query_x)
        known = one_hot(support_y, way, support.dtype)
        support = torch.cat([support, torch.where(support_y[..., None] < 0, 1 / way, known)], dim=-1)
        query = F.pad(query, (0, way), value=1 / way)
        return torch.cat([query[:, :, None], support[:, None].expand(-1, query.shape[1], -1, -1)], dim=2)
