"""Matching networks against sums written out, and full context against LSTMs run item by item."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.tasks.predictors import CosinePredictor
from models.tasks.scorers.attention import AttentionScorer, FullContextScorer

pytestmark = pytest.mark.usefixtures("float64")


def tasks(shot: int, way: int = 4, dim: int = 6):
    return torch.randn(2, way * shot, dim), torch.arange(way).repeat_interleave(shot).expand(2, -1), torch.randn(2, 5, dim)


def test_one_shot_is_the_softmax_of_cosines_to_the_support_items():
    support_x, support_y, query_x = tasks(1)
    scores = AttentionScorer(7.0)(support_x, support_y, query_x, 4)
    torch.testing.assert_close(scores, CosinePredictor(7.0)(query_x, support_x), rtol=1e-12, atol=1e-12)


def test_probabilities_are_sums_of_attention_over_the_items_of_a_class():
    support_x, _, query_x = tasks(3)
    support_y = torch.stack([torch.randperm(12) % 4, torch.tensor([0] * 5 + [1] * 4 + [2, 2, 3])])
    attention = (7 * F.cosine_similarity(query_x[:, :, None], support_x[:, None], dim=-1)).softmax(-1)
    scores = AttentionScorer(7.0)(support_x, support_y, query_x, 4)
    torch.testing.assert_close(scores.softmax(-1), attention @ F.one_hot(support_y).double(), rtol=1e-12, atol=1e-12)


def test_five_copies_of_the_items_are_one():
    support_x, support_y, query_x = tasks(1)
    copied = (part.repeat_interleave(5, dim=1) for part in (support_x, support_y))
    expected = AttentionScorer()(support_x, support_y, query_x, 4).log_softmax(-1)
    torch.testing.assert_close(AttentionScorer()(*copied, query_x, 4).log_softmax(-1), expected, rtol=1e-12, atol=1e-12)


def test_full_context_with_lstms_that_say_nothing_is_plain():
    support_x, support_y, query_x = tasks(2)
    scorer = FullContextScorer(6, steps=3)
    plain = AttentionScorer()(support_x, support_y, query_x, 4)
    assert not torch.allclose(scorer(support_x, support_y, query_x, 4), plain)
    with torch.no_grad():
        for lstm in (scorer.forwards, scorer.backwards, scorer.reader):
            for parameter in lstm.parameters():
                parameter.zero_()
    assert torch.equal(scorer(support_x, support_y, query_x, 4), plain)


def stepped(lstm: nn.LSTM, items: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of an LSTM by its equations, one item ``[D]`` at a time."""
    hidden = cell = torch.zeros(lstm.hidden_size)
    outputs = []
    for item in items:
        gates = lstm.weight_ih_l0 @ item + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden + lstm.bias_hh_l0
        into, forget, update, out = gates.chunk(4)
        cell = forget.sigmoid() * cell + into.sigmoid() * update.tanh()
        hidden = out.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return outputs


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_full_context_follows_its_equations(steps):
    support_x, support_y, query_x = tasks(2)
    scorer = FullContextScorer(6, steps=steps)
    embedded, queries = scorer.embed(support_x, support_y, query_x)
    forwards = torch.stack(stepped(scorer.forwards, support_x[0]))
    backwards = torch.stack(stepped(scorer.backwards, support_x[0].flip(0))).flip(0)
    support = support_x[0] + forwards + backwards
    torch.testing.assert_close(embedded[0], support, rtol=1e-12, atol=1e-12)
    reader, x = scorer.reader, query_x[0, 1]
    hidden, cell = x, torch.zeros(6)
    for _ in range(steps):
        read = (support @ hidden).softmax(0) @ support
        gates = reader.weight_ih @ torch.cat([x, read]) + reader.bias_ih + reader.weight_hh @ hidden + reader.bias_hh
        into, forget, update, out = gates.chunk(4)
        cell = forget.sigmoid() * cell + into.sigmoid() * update.tanh()
        hidden = out.sigmoid() * cell.tanh() + x
    torch.testing.assert_close(queries[0, 1], hidden, rtol=1e-12, atol=1e-12)
