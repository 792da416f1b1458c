"""Synthetic regression: the closed forms of the linear tasks, the sinusoids' noise, the curve's gap."""

import math

import pytest
import torch

from data.curves import sinusoid_or_line_tasks
from data.regression import (
    curve,
    linear_evidence,
    linear_posterior,
    linear_tasks,
    load_curve,
    network_outputs,
    network_prior,
    network_tasks,
    radial_basis,
    radial_inputs,
    sinusoid_log_predictive,
    sinusoid_or_line_log_predictive,
    sinusoid_tasks,
)


def test_linear_tasks_follow_their_prior_and_noise(float64):
    loc, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.1])
    episode = linear_tasks(4000, 10, loc, scale, noise=0.3, seed=0, support=20)
    assert episode.support_x.shape == (4000, 20, 2)
    assert episode.query_y.shape == (4000, 10)
    fitted = torch.linalg.lstsq(episode.support_x, episode.support_y[..., None]).solution[..., 0]
    torch.testing.assert_close(fitted.mean(0), loc, atol=0.03, rtol=0)
    residual = episode.support_y - (episode.support_x @ fitted[..., None])[..., 0]
    assert float((residual.square().sum() / (4000 * 18)).sqrt()) == pytest.approx(0.3, rel=0.02)
    # least squares adds noise² (xᵀx)⁻¹, on average noise² / (n − D − 1), to the prior's variance
    torch.testing.assert_close(fitted.var(0), scale**2 + 0.3**2 / 17, rtol=0.08, atol=0)


def test_linear_posterior_and_evidence_agree_by_bayes_rule(float64):
    """log p(y) = log p(y | w) + log p(w) − log p(w | y), at any w."""
    loc, scale, noise = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 0.1, 2.0]), 0.3
    episode = linear_tasks(3, 1, loc, scale, noise=noise, seed=1, support=6)
    x, y = episode.support_x, episode.support_y
    mean, covariance = linear_posterior(x, y, loc, scale, noise)
    for w in (torch.zeros(3), torch.tensor([0.3, -1.0, 2.0])):
        likelihood = torch.distributions.Normal((x @ w), noise).log_prob(y).sum(-1)
        prior = torch.distributions.Normal(loc, scale).log_prob(w).sum()
        posterior = torch.distributions.MultivariateNormal(mean, covariance).log_prob(w)
        torch.testing.assert_close(likelihood + prior - posterior, linear_evidence(x, y, loc, scale, noise))


def test_sinusoids_are_seeded_and_bounded():
    first, again, other = (sinusoid_tasks(50, seed=seed, noise=0.0) for seed in (0, 0, 1))
    assert torch.equal(first.query_x, again.query_x)
    assert not torch.equal(first.query_x, other.query_x)
    assert first.support_x.shape == (50, 10, 40)
    assert float(first.query_y.abs().max()) <= 5
    noisy = sinusoid_tasks(50, seed=0, noise=0.1)
    both = [torch.cat([e.support_y, e.query_y], dim=-1) for e in (first, noisy)]
    assert float((both[1] - both[0]).std()) == pytest.approx(0.1, rel=0.1)


def test_radial_basis_peaks_at_its_centres():
    features = radial_basis(torch.tensor([-6.0, 6.0]))
    assert features.shape == (2, 40)
    assert features.argmax(-1).tolist() == [0, 38]
    assert (features[:, -1] == 1).all()


def test_curve_leaves_a_gap_and_follows_its_function():
    data = load_curve()
    assert not data.is_classification
    x = data.train.items[:, 0]
    assert float(x.abs().min()) >= 0.6
    assert float(x.abs().max()) <= 2
    assert float((data.train.labels - curve(x)).std()) == pytest.approx(0.1, rel=0.2)
    assert float(curve(torch.tensor(1.0))) == pytest.approx(0.9093 + 0.5, abs=1e-4)


def test_network_tasks_are_drawn_from_their_own_prior_and_noise():
    """The same weights give the same outputs in torch's own network, in the order of its parameters."""
    loc, scale = network_prior(20)
    assert loc.shape == scale.shape == (61,)
    network = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
    weights = loc + scale * torch.randn(61)
    torch.nn.utils.vector_to_parameters(weights, network.parameters())
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(network(x[:, None])[:, 0], network_outputs(x, weights))
    point = torch.full_like(scale, 1e-6)  # one function alone: what is left is the noise
    episode = network_tasks(500, 5, loc, point, noise=0.2, seed=0, support=15)
    residual = episode.support_y - network_outputs(episode.support_x[..., 0], loc)
    assert float(residual.std()) == pytest.approx(0.2, rel=0.03)
    assert float(episode.query_x.abs().max()) <= 3
    assert torch.equal(
        network_tasks(2, 5, loc, scale, noise=0.2, seed=1).query_y, network_tasks(2, 5, loc, scale, noise=0.2, seed=1).query_y
    )


def test_exact_bayes_of_sinusoids_is_what_quadrature_over_both_numbers_gives(float64):
    """Amplitude in closed form, against a grid; one task whose amplitude is at the end of its range is among them."""
    episode = sinusoid_tasks(4, support=3, queries=2, noise=0.5, seed=3)
    x, asked = (radial_inputs(part) for part in (episode.support_x, episode.query_x))
    found = sinusoid_log_predictive(x, episode.support_y, asked, episode.query_y, 0.5)
    amplitude = torch.linspace(0.1, 5, 601)[:, None, None, None]
    phase = (math.pi * (torch.arange(400) + 0.5) / 400)[:, None, None]
    logs = [
        torch.distributions.Normal(amplitude * torch.sin(inputs + phase), 0.5).log_prob(y)  # [amplitudes, phases, tasks, n]
        for inputs, y in ((x, episode.support_y), (asked, episode.query_y))
    ]
    prior = torch.ones(601)
    prior[[0, -1]] = 0.5  # the trapezoid rule
    evidence = logs[0].sum(-1, keepdim=True) + prior.log()[:, None, None, None]
    grid = (evidence + logs[1]).logsumexp((0, 1)) - evidence.logsumexp((0, 1))
    torch.testing.assert_close(found, grid, atol=1e-4, rtol=0)


def test_exact_bayes_of_sinusoids_or_lines_is_what_quadrature_over_all_numbers_gives(float64):
    episode = sinusoid_or_line_tasks(4, support=2, queries=2, noise=0.5, seed=5).to(dtype=torch.float64)
    x, asked = episode.support_x[..., 0], episode.query_x[..., 0]
    found = sinusoid_or_line_log_predictive(x, episode.support_y, asked, episode.query_y, 0.5)

    def curves(at):
        points = (torch.arange(400) + 0.5) / 400
        first, second = points[:, None, None, None], points[:, None, None]
        waves = (0.1 + 4.9 * first) * torch.sin(at + math.pi * second)
        return torch.stack([waves, (6 * first - 3) * at + 6 * second - 3])  # [kinds, 400, 400, tasks, n]

    evidence, joint = (
        torch.distributions.Normal(curves(at), 0.5).log_prob(y) for at, y in ((x, episode.support_y), (asked, episode.query_y))
    )
    evidence = evidence.sum(-1, keepdim=True)
    grid = (evidence + joint).logsumexp((0, 1, 2)) - evidence.logsumexp((0, 1, 2))
    torch.testing.assert_close(found, grid, atol=1e-4, rtol=0)


def test_inputs_are_read_off_their_bumps():
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(radial_inputs(radial_basis(x).double()), x.double(), atol=1e-5, rtol=0)
