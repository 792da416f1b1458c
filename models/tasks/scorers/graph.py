"""Graph neural networks over a task's support items and one query."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.seeding import draw_part
from data.semi_supervised import UNLABELLED, sealed
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
        self.embedded = num_features if width is None else width  # features of a node before those of its label
        size = self.embedded + way
        sizes = [size + growth * layer for layer in range(layers + 1)]
        self.layers = nn.ModuleList(GraphLayer(PairwiseAdjacency(n, widths), n, growth) for n in sizes[:-1])
        self.last = GraphLayer(PairwiseAdjacency(sizes[-1], widths), sizes[-1], way)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        self.check_way(way)
        nodes = self.nodes(support_x, support_y, query_x, way)
        for number, layer in enumerate(self.layers):
            nodes = torch.cat([nodes, F.leaky_relu(layer(nodes, shared=not number))], dim=-1)
            if not number:
                nodes = self.after_first(nodes, support_y)
        return self.last(nodes, listeners=1).squeeze(-2)

    def after_first(self, nodes: Tensor, support_y: Tensor) -> Tensor:
        """What goes on from the first layer: all of it. ``[tasks, query, 1 + support, F]``, as what is returned."""
        return nodes

    def nodes(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        """x⁽⁰⁾ of all graphs, the query first: ``[tasks, query, 1 + support, F]``."""
        support, query = self.embedding(support_x), self.embedding(query_x)
        known = one_hot(support_y, way, support.dtype)
        support = torch.cat([support, torch.where(support_y[..., None] < 0, 1 / way, known)], dim=-1)
        query = F.pad(query, (0, way), value=1 / way)
        return torch.cat([query[:, :, None], support[:, None].expand(-1, query.shape[1], -1, -1)], dim=2)


class RequestAttention(nn.Module):
    """Which item's label a query asks for: softmax over items i of −Σ_k a_k (x_ik − x_0k)², x_0 the query's node, a learned.

    Source: Garcia and Bruna 2018, section 5.2, where any two layers score a node; this distance, and no gradient from it to the
    nodes, are the authors' code's. There a begins uniform in [0, 1], as here. Features of a node are normalised first, where
    that has an embedding with batch norm: the scale decides how sharp the attention is at first.

    Args:
        num_features: of a node.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(num_features))

    def forward(self, nodes: Tensor, askable: Tensor) -> Tensor:
        """Shares of the items, the nodes after the first: ``[..., 1 + n, F], [..., n] -> [..., n]``; 0 where an item is not
        ``askable``, a bool, all 0 where none is."""
        normal = F.layer_norm(nodes.detach(), nodes.shape[-1:])
        away = (normal[..., 1:, :] - normal[..., :1, :]).square() @ self.weight
        return (-away).masked_fill(~askable, torch.finfo(nodes.dtype).min).softmax(-1) * askable


class AskingGraphScorer(GraphScorer):
    """A graph network that asks for one label for each query after its first layer: active learning within the network.

    Of the support items whose label is sealed (:func:`~data.semi_supervised.sealed`) one is asked for, by an attention w over
    them, and its one-hot label is added where its node has its label, which was uniform. Where labels are not hard it is added
    w_i times, as in the paper. In training item i is drawn with probability w_i, in evaluation it has the largest w_i. No other
    sealed label is read, by predictions or gradients. Each query asks for itself, as in the paper, whose tasks have one query.
    Items with label −1 cannot be asked for.

    Source: Garcia and Bruna 2018, "Few-shot learning with graph neural networks", section 5.2.

    Args:
        num_features, way: see :class:`GraphScorer`.
        growth: likewise.
        hard: whether the label counts in full, and w_i in the gradient alone, so that a weak attention is not unlearned. In the
            authors' code it counts in full by Gumbel's softmax, whose gradient reads all sealed labels.
        random_training: whether any item is asked for in training, as if by :meth:`choosing_at_random`: what stands beside a
            choice that is learned.
        options: others of :class:`GraphScorer`, with one layer at least.

    Attributes:
        at_random: whether it asks for any item instead, each as likely, and adds the largest w_i times its label, so that the
            choice alone differs.
    """

    at_random: bool = False

    def __init__(
        self,
        num_features: int,
        way: int,
        *,
        growth: int = 48,
        hard: bool = True,
        random_training: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_features, way, growth=growth, **options)
        self.hard, self.random_training = hard, random_training
        self.attention = RequestAttention(self.embedded + way + growth)

    @contextmanager
    def choosing_at_random(self) -> Iterator[None]:
        """Inside, it asks for any item, by torch's random numbers, in evaluation too."""
        self.at_random = True
        try:
            yield
        finally:
            self.at_random = False

    @property
    def takes_any(self) -> bool:
        """Whether it asks at random now."""
        return self.at_random or (self.training and self.random_training)

    def after_first(self, nodes: Tensor, support_y: Tensor) -> Tensor:
        """The nodes with the labels that their queries ask for, of the same shape."""
        askable = (support_y < UNLABELLED)[:, None]
        attention = self.attention(nodes, askable)
        item = self.chosen(attention, askable)
        share = attention.amax(-1, keepdim=True) if self.takes_any else attention.gather(-1, item)
        if self.hard:
            share = share + (askable.any(-1, keepdim=True).to(share) - share).detach()
        answer = sealed(support_y)[:, None].expand_as(attention).gather(-1, item)  # [tasks, query, 1]; share 0 if not sealed
        one = (item == torch.arange(attention.shape[-1], device=item.device))[..., None]  # [tasks, query, support, 1]
        place = torch.arange(nodes.shape[-1], device=item.device) == self.embedded + answer  # [tasks, query, F]
        told = one & place[:, :, None]
        return nodes + F.pad(share[..., None] * told, (0, 0, 1, 0))

    def chosen(self, attention: Tensor, askable: Tensor) -> Tensor:
        """Which item each query asks for: ``[tasks, query, support], [tasks, 1, support] -> [tasks, query, 1]``.

        At random, of independent exponential clocks with rates w_i clock i is first with probability w_i.
        """
        if not (self.training or self.takes_any):
            return attention.argmax(-1, keepdim=True)
        rates = askable.to(attention) if self.takes_any else attention.detach()
        draw = partial(torch.rand, dtype=attention.dtype, device=attention.device)
        return (rates / -draw_part(draw, attention.shape, 0).log()).argmax(-1, keepdim=True)
