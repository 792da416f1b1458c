"""Entropies and decoding gains against closed forms, in one batch and in many."""

import math

import pytest
import torch
from torch import nn

from models.distillation.decoders import build_decoder
from models.distillation.information import DecodingGain, Moments, marginal_entropy, surprise_map


def gain(decoder, s, t, entropy="diagonal"):
    summed = DecodingGain(decoder, entropy)
    summed.add(s, t)
    return summed.value()


def test_marginal_entropy_is_that_of_the_fitted_gaussian(float64):
    t = 2 + 3 * torch.randn(500, 4, 3, 3)
    mean, std = t.mean((0, 2, 3), keepdim=True), t.std((0, 2, 3), correction=0, keepdim=True)
    expected = -torch.distributions.Normal(mean, std).log_prob(t).sum((1, 2, 3)).mean()
    torch.testing.assert_close(marginal_entropy(t), expected)
    units = torch.randn(500, 2)
    expected = 0.5 * (2 * math.pi * math.e * units.var(0, correction=0)).log().sum()
    torch.testing.assert_close(marginal_entropy(units), expected)


@pytest.mark.parametrize("shape", [(5,), (5, 4, 4)])
def test_bound_is_zero_for_a_decoder_that_ignores_the_student(float64, shape):
    scale = torch.rand(shape[0], *(1 for _ in shape[1:])) + 0.5
    s, t = torch.randn(300, *shape), 1 + scale * torch.randn(300, *shape)
    decoder = build_decoder(shape, shape)
    before = float(gain(decoder, s, t))
    decoder.ignore_student(t)
    numbers = math.prod(shape)
    assert before < -0.2 * numbers
    assert -0.05 * numbers < float(gain(decoder, s, t)) < 0
    last = [m for m in decoder.mean.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    assert float(gain(decoder, s, t)) == pytest.approx(0, abs=1e-6 * numbers)


def test_surprise_adds_up_to_the_density(float64):
    decoder = build_decoder((4, 8, 8), (3, 4, 4), heteroscedastic=True).eval()
    s, t = torch.randn(6, 4, 8, 8), torch.randn(6, 3, 4, 4)
    maps = surprise_map(decoder, s, t)
    assert maps.shape == (6, 4, 4)
    torch.testing.assert_close(maps.sum((1, 2)), -decoder(s).log_prob(t))


def test_full_entropy_is_that_of_the_fitted_gaussian(float64):
    t = torch.randn(4000, 3) @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.3, 0.0, 1.5]]) + 2
    expected = 0.5 * torch.logdet(2 * math.pi * math.e * torch.cov(t.mT, correction=0))
    torch.testing.assert_close(marginal_entropy(t, "full"), expected, atol=0.02, rtol=0)
    maps = t.view(400, 10, 1, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(marginal_entropy(maps, "full"), 10 * expected, atol=0.2, rtol=0)


def test_eight_copies_of_a_unit_count_once(float64):
    """s and one unit u are jointly Gaussian with I(u; s) = 0.8 nats; the layer is eight copies of u. Taken as independent, they
    seem to hold 6.4."""
    correlation = math.sqrt(1 - math.exp(-1.6))
    s = torch.randn(20_000, 1)
    u = correlation * s + math.sqrt(1 - correlation**2) * torch.randn(20_000, 1)
    t = u.expand(-1, 8)
    decoder = build_decoder((1,), (8,), variance=1 - correlation**2)
    nn.init.constant_(decoder.mean[-1].weight, correlation)
    nn.init.zeros_(decoder.mean[-1].bias)
    assert gain(decoder, s, t) == pytest.approx(8 * 0.8, abs=0.15)
    assert gain(decoder, s, t, "full") == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("shape", [(5,), (5, 4, 4)])
@pytest.mark.parametrize("entropy", ["diagonal", "full"])
def test_batches_change_nothing(float64, shape, entropy):
    decoder = build_decoder((3,), shape).eval()
    s, t = torch.randn(50, 3), 1e3 + torch.randn(50, *shape)
    decoder.ignore_student(t)
    summed = DecodingGain(decoder, entropy)
    for part in torch.arange(50).split(7):
        summed.add(s[part], t[part])
    assert summed.value() == pytest.approx(gain(decoder, s, t, entropy), abs=1e-6)


def test_too_few_values_for_a_covariance_are_named():
    moments = Moments(full=True)
    moments.add(torch.randn(4, 6))
    with pytest.raises(ValueError, match="6 units needs more than 4 values"):
        moments.entropy()
