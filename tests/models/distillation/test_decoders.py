"""Decoders against torch.distributions, and what their mean is made of."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.distillation.decoders import SMALLEST_VARIANCE, build_decoder, mean_network
from models.distributions.layer import LayerNormal


def test_vector_density_is_equation_three(float64):
    decoder = build_decoder((4,), (3,))
    s, t = torch.randn(6, 4), torch.randn(6, 3)
    sigma = (F.softplus(decoder.alpha) + SMALLEST_VARIANCE).sqrt()
    mean = F.linear(s, decoder.mean[-1].weight, decoder.mean[-1].bias)
    expected = -(sigma.log() + (t - mean).square() / (2 * sigma**2) + 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(decoder(s).log_prob(t), expected)
    torch.testing.assert_close(decoder(s).log_prob(t), torch.distributions.Normal(mean, sigma).log_prob(t).sum(-1))


def test_spatial_density_is_equation_four(float64):
    decoder = build_decoder((4, 8, 8), (3, 8, 8)).eval()
    s, t = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
    mean, sigma = decoder.mean(s), (F.softplus(decoder.alpha) + SMALLEST_VARIANCE).sqrt()
    assert sigma.shape == (3, 1, 1)
    terms = torch.distributions.Normal(mean, sigma.expand(3, 8, 8)).log_prob(t)
    torch.testing.assert_close(decoder(s).log_prob(t), terms.sum((1, 2, 3)))


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
@pytest.mark.parametrize("heteroscedastic", [False, True])
def test_density_term_by_term(float64, shape, heteroscedastic):
    decoder = build_decoder((4, 8, 8), shape, heteroscedastic=heteroscedastic).eval()
    nn.init.normal_(decoder.alpha)
    for p in decoder.parameters():
        nn.init.normal_(p)
    s, t = torch.randn(7, 4, 8, 8), torch.randn(7, *shape)
    q = decoder(s)
    terms = torch.distributions.Normal(q.mean, q.variance.sqrt()).log_prob(t)
    torch.testing.assert_close(q.log_prob_of_units(t), terms)
    torch.testing.assert_close(q.log_prob(t), terms.flatten(1).sum(-1))
    loc, scale = q.mean.detach().requires_grad_(), decoder.alpha.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda loc, scale: LayerNormal(loc, scale.exp()).log_prob(t), (loc, scale))


@pytest.mark.parametrize("student", [(4,), (4, 8, 8), (4, 2, 2), (4, 3, 5)])
@pytest.mark.parametrize("teacher", [(3,), (3, 4, 4)])
@pytest.mark.parametrize("heteroscedastic", [False, True])
def test_any_shapes(student, teacher, heteroscedastic):
    decoder = build_decoder(student, teacher, heteroscedastic=heteroscedastic, variance=2.0)
    q = decoder(torch.randn(5, *student))
    assert (q.batch_shape, q.event_shape) == ((5,), teacher)
    torch.testing.assert_close(q.variance, torch.full_like(q.variance, 2.0), atol=1e-4, rtol=0)


def test_sequences_are_refused():
    with pytest.raises(ValueError, match="student's layer has shape"):
        build_decoder((7, 4), (3,))


def test_bound_reaches_gaussian_information_and_never_exceeds_it(float64):
    """t = A s + noise: I = ½ log det(I + A Aᵀ/σ²) for s ~ N(0, I); H(t) is known, and the decoder is of the right form."""
    a, noise = torch.randn(3, 4), 0.6
    covariance = a @ a.T + noise**2 * torch.eye(3)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    information = float(0.5 * torch.logdet(torch.eye(3) + a @ a.T / noise**2))
    decoder = build_decoder((4,), (3,))
    optimizer = torch.optim.Adam(decoder.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)

    def draw(n):
        s = torch.randn(n, 4)
        return s, s @ a.T + noise * torch.randn(n, 3)

    for step in range(800):
        s, t = draw(512)
        loss = -decoder(s).log_prob(t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            s, t = draw(20_000)
            with torch.no_grad():
                values = decoder(s).log_prob(t)
            error = 3 * float(values.std()) / 20_000**0.5
            assert float(entropy + values.mean()) < information + error
    assert float(entropy + values.mean()) == pytest.approx(information, rel=0.02)


@pytest.mark.parametrize("variance", [2e-3, 0.5, 30.0, 1e4])
def test_variances_of_any_size_can_be_started_from(variance):
    t = variance**0.5 * torch.tensor([[-1.0], [1.0]])
    decoder = build_decoder((2,), (1,))
    decoder.ignore_student(t)
    torch.testing.assert_close(decoder.variance(torch.zeros(1, 2)).squeeze(), torch.tensor(variance), rtol=1e-4, atol=0)


@pytest.mark.parametrize("student", [(3, 4, 4), (6,)])
def test_mean_of_maps_has_batch_norm_and_relu_between_its_convolutions(float64, student):
    """Equation 4's μ, recomputed step by step in training mode."""
    network, s = mean_network(student, (5, 4, 4)), torch.randn(7, *student)
    first, second = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    maps = s
    if len(student) == 1:
        maps = F.linear(s, network[0].weight, network[0].bias).view(7, 5, 4, 4)
        maps = F.relu(F.batch_norm(maps, None, None, training=True))
    hidden = F.conv2d(maps, first.weight)
    normed = (hidden - hidden.mean((0, 2, 3), keepdim=True)) / (hidden.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(network(s), F.conv2d(normed.clamp_min(0), second.weight, second.bias))
