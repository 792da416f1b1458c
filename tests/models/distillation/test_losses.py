"""Transfer losses against slow, obvious versions and their limits."""

import pytest
import torch
import torch.nn.functional as F

from models.distillation.decoders import build_decoder
from models.distillation.losses import (
    Transfer,
    attention_transfer,
    build_loss,
    hint,
    knowledge_distillation,
    learning_without_forgetting,
    neuron_selectivity_transfer,
)


@pytest.fixture(autouse=True)
def double(float64):
    pass


def test_distillation_is_the_kl_of_softened_answers():
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (torch.distributions.Categorical(logits=z / 4) for z in (t, s))
    torch.testing.assert_close(knowledge_distillation(s, t), 16 * torch.distributions.kl_divergence(p, q))
    assert float(knowledge_distillation(t, t).abs().max()) < 1e-12


def test_distillation_at_high_temperature_matches_centred_logits():
    """Hinton et al. 2015, equation 4: half the squared difference of the logits about their means, over the classes."""
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    centred = (s - s.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    expected = centred.square().mean(-1) / 2
    torch.testing.assert_close(knowledge_distillation(s, t, temperature=1e3), expected, rtol=1e-2, atol=0)


def test_forgetting_loss_is_distillation_plus_a_constant():
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    entropy = torch.distributions.Categorical(logits=t / 2).entropy()
    expected = knowledge_distillation(s, t, temperature=2.0) / 4 + entropy
    torch.testing.assert_close(learning_without_forgetting(s, t), expected)


def test_hint_is_a_unit_variance_decoder():
    decoder = build_decoder((3,), (4,), variance=1.0)
    s, t = torch.randn(6, 3), torch.randn(6, 4)
    constant = -decoder(s).log_prob(decoder.mean(s))
    torch.testing.assert_close(-decoder(s).log_prob(t) - constant, hint(decoder.mean(s), t), rtol=1e-4, atol=1e-4)


def test_attention_is_blind_to_scale_and_channels():
    maps = torch.rand(2, 3, 4, 4)
    more = torch.cat([maps, maps], dim=1) * 5
    assert float(attention_transfer(more, maps).max()) < 1e-6
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    q = [F.normalize(m.square().sum(1).flatten(1), dim=-1) for m in (a, b)]
    torch.testing.assert_close(attention_transfer(a, b), (q[0] - q[1]).norm(dim=-1) / 2)
    assert attention_transfer(torch.randn(2, 3, 8, 8), b).shape == (2,)


def test_selectivity_equals_the_double_loop():
    s, t = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 4, 4)
    rows = [[F.normalize(m[0, c].flatten(), dim=0) for c in range(m.shape[1])] for m in (s, t)]

    def mean_kernel(a, b):
        return sum(float(x @ y) ** 2 for x in a for y in b) / (len(a) * len(b))

    expected = mean_kernel(rows[1], rows[1]) + mean_kernel(rows[0], rows[0]) - 2 * mean_kernel(rows[1], rows[0])
    assert float(neuron_selectivity_transfer(s, t)) == pytest.approx(expected)
    assert float(neuron_selectivity_transfer(t, t[:, torch.randperm(5)])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [attention_transfer, neuron_selectivity_transfer])
def test_gradients_are_finite_even_at_equality(loss):
    maps = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss(maps, maps.detach().clone()).sum().backward()
    assert bool(maps.grad.isfinite().all())


@pytest.mark.parametrize("transfer", [Transfer.AT, Transfer.NST, Transfer.FITNET])
def test_losses_are_in_float32_under_autocast(transfer):
    """In bfloat16 the gradient of attention transfer is exactly zero for about half of such images."""
    teacher = torch.rand(16, 6, 8, 8, dtype=torch.float32)
    student = (teacher + 0.03 * torch.randn(16, 6, 8, 8, dtype=torch.float32)).requires_grad_()
    loss = build_loss(transfer, (6, 8, 8), (6, 8, 8)).float()
    with torch.autocast("cpu", torch.bfloat16):
        values = loss(student.to(torch.bfloat16), teacher.to(torch.bfloat16))
    assert values.dtype == torch.float32
    values.sum().backward()
    assert bool((student.grad.flatten(1).norm(dim=-1) > 0).all())


def test_logits_are_compared_in_float32_under_autocast():
    s, t = torch.randn(5, 7, dtype=torch.float32), torch.randn(5, 7, dtype=torch.float32)
    halves = s.to(torch.bfloat16), t.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = build_loss(Transfer.KD, (7,), (7,))(*halves)
    torch.testing.assert_close(loss, knowledge_distillation(*(h.float() for h in halves)), rtol=0, atol=0)
