"""Relation networks: a learned comparison of a query with each class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.tasks.scorers.base import Scorer, labelled_means, log_counts


class RelationScorer(Scorer):
    """logit_c = g([x, m_c]): a perceptron g with rectified hidden layers reads the query beside the class's mean or sum m_c.

    Any number of classes; each is scored by itself, in the same way. The paper embeds images into maps and has a convolutional
    g with hidden layers of 64, 64 and 8; on vectors it is a perceptron. The paper's relation score is sigmoid(g), trained by
    squared error to one-hot labels, which says nothing of probabilities; the softmax of g does, so that is what its NLL means.
    A constant of all logits drops out of that, and the last layer has none.

    Source: Sung et al. 2018, "Learning to compare: relation network for few-shot learning", equations 1 and 2; of several items
    of a class "we element-wise sum over the embedding module outputs".

    Args:
        num_features: D.
        widths: of g's hidden layers.
        summed: whether m_c is the sum, as in the paper, and not the mean, which is the same whatever the shot.
    """

    def __init__(self, num_features: int, *, widths: Sequence[int] = (64, 8), summed: bool = False) -> None:
        super().__init__()
        self.summed = summed
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((2 * num_features, *widths)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.relation = nn.Sequential(*layers, nn.Linear((2 * num_features, *widths)[-1], 1, bias=False))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        classes = labelled_means(support_x, support_y, way)
        if self.summed:
            classes = classes * log_counts(support_y, way, classes.dtype).exp()[..., None]
        shape = (*query_x.shape[:2], way, query_x.shape[-1])
        pairs = torch.cat([query_x[:, :, None].expand(shape), classes[:, None].expand(shape)], dim=-1)
        return self.relation(pairs).squeeze(-1)
