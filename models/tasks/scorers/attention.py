"""Matching networks: a query takes the labels of the support items that it is like."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tasks.scorers.base import ScaledScorer, log_sums


class AttentionScorer(ScaledScorer):
    """P(y = c) = Σ_{i: y_i = c} a(x, x_i), with a(x, x_i) = softmax_i(s cos(f(x), g(x_i))), s learned: logits are
    log Σ_{i: y_i = c} exp(s cos).

    A class with more support items than others has more to be like: the sum is the paper's, and not divided by their number.
    The paper has s = 1, which leaves cosines unable to say anything with confidence.

    Source: Vinyals et al. 2016, "Matching networks for one shot learning", equation 1 and the attention of section 2.1.1.

    Args:
        scale: s, at first.
    """

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__(scale)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        support, query = self.embed(support_x, support_y, query_x)
        cosines = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT
        return log_sums(self.scale * cosines, support_y, way)

    def embed(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """g of the support items and f of the queries, of the shapes that they come in; here they stay what they are."""
        return support_x, query_x


class FullContextScorer(AttentionScorer):
    """Attention among embeddings that have seen the whole support: full context embeddings.

    g(x_i, S) = →h_i + ←h_i + x_i, with →h and ←h the outputs of two LSTMs that read the support items in their order and
    against it; f(x, S) = h_K, where K times

        ĥ_k, c_k = LSTM([x, r_{k−1}], (h_{k−1}, c_{k−1}))
        h_k = ĥ_k + x
        r_k = Σ_i softmax_i(⟨h_k, g(x_i, S)⟩) g(x_i, S)

    with h_0 = x, c_0 = 0. The paper concatenates r to the state, which is the same affine map; it does not say its K. LSTMs
    whose parameters are 0 give 0, and this scorer is then :class:`AttentionScorer`. Labels are not read before the last sum.

    **Predictions depend on the order of the support items**, for the LSTMs do; support sets that list one class after the
    other, as ours do, are therefore not equivariant when classes are renamed. An average over orders, which is taken outside,
    would be.

    Source: Vinyals et al. 2016, section 2.1.2 and appendix A.1, A.2 (equations 3 to 6).

    Args:
        num_features: D.
        steps: K.
        scale: s, at first.
    """

    def __init__(self, num_features: int, *, steps: int = 2, scale: float = 10.0) -> None:
        super().__init__(scale)
        self.steps = steps
        self.forwards = nn.LSTM(num_features, num_features, batch_first=True)
        self.backwards = nn.LSTM(num_features, num_features, batch_first=True)
        self.reader = nn.LSTMCell(2 * num_features, num_features)

    def embed(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        unlabelled = support_y < 0
        backwards = read(self.backwards, support_x.flip(1), unlabelled.flip(1)).flip(1)
        support = read(self.forwards, support_x, unlabelled) + backwards + support_x
        return support, self.embed_queries(support, unlabelled, query_x)

    def embed_queries(self, support: Tensor, unlabelled: Tensor, query_x: Tensor) -> Tensor:
        """f(x, S) for g(S) ``[tasks, support, D]``, of which the ``unlabelled`` ``[tasks, support]`` are not attended to."""
        hidden, cell = query_x, torch.zeros_like(query_x).flatten(0, 1)
        for _ in range(self.steps):
            likeness = (hidden @ support.mT).masked_fill(unlabelled[:, None], torch.finfo(hidden.dtype).min)
            inputs = torch.cat([query_x, likeness.softmax(-1) @ support], dim=-1)
            output, cell = self.reader(inputs.flatten(0, 1), (hidden.flatten(0, 1), cell))
            hidden = output.unflatten(0, query_x.shape[:2]) + query_x
        return hidden


def read(lstm: nn.LSTM, x: Tensor, last: Tensor) -> Tensor:
    """Outputs of an LSTM at the items of ``x`` ``[tasks, n, D]``, ``[tasks, n, hidden]``; those that are to come ``last``,
    bool ``[tasks, n]``, are read after all others, which so know nothing of them."""
    order = last.long().argsort(stable=True, dim=-1)[..., None]
    outputs = lstm(x.take_along_dim(order, 1))[0]
    return outputs.take_along_dim(order.argsort(1), 1)
