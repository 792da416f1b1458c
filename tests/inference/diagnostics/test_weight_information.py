"""Information between weights and training set against closed forms and quadrature."""

import math

import pytest
import torch

from inference.diagnostics.weight_information import (
    chi_squared_information,
    generalisation_bound,
    sharpness,
    weight_information,
)


@pytest.fixture(autouse=True)
def double(float64):
    pass


class TestWeightInformation:
    @pytest.mark.slow
    def test_gaussian_mean_has_its_closed_form(self):
        """S: n draws of N(0, 1); q(w given S) = N(a·mean, v). I(w; S) = ½ log(1 + a²/(n v))."""
        n, a, v, sets = 20, 0.9, 0.02, 4000
        means = torch.randn(sets, n).mean(1, keepdim=True)
        log_scale = torch.full((sets, 1), v).log() / 2
        estimate = weight_information(a * means, log_scale, num_samples=4)
        assert estimate == pytest.approx(0.5 * math.log(1 + a**2 / (n * v)), rel=0.03)

    @pytest.mark.parametrize("posteriors", [2, 5, 16])
    def test_ceiling_is_log_k(self, posteriors):
        loc = 100 * torch.randn(posteriors, 50)
        assert weight_information(loc, torch.zeros_like(loc)) == pytest.approx(math.log(posteriors), abs=1e-9)
        assert weight_information(loc[:1].expand(posteriors, -1), torch.zeros_like(loc)) == pytest.approx(0, abs=1e-9)

    def test_chi_squared_equals_quadrature(self):
        loc, scale = torch.tensor([[0.0], [0.4], [-0.3]]), torch.tensor([[1.0], [1.1], [0.9]])
        grid = torch.linspace(-30, 30, 200_001)
        log_q = torch.distributions.Normal(loc, scale).log_prob(grid)
        ratio = (log_q.logsumexp(0) - math.log(3) - log_q).exp()
        expected = torch.trapezoid(log_q.exp() * (ratio - 1).square(), grid).mean()
        assert chi_squared_information(loc, scale.log()) == pytest.approx(float(expected), rel=1e-6)

    def test_chi_squared_is_infinite_where_a_posterior_is_too_narrow(self):
        loc = torch.zeros(2, 1)
        assert chi_squared_information(loc, torch.tensor([[0.0], [-1.0]])) == math.inf

    def test_bound_holds_for_the_gaussian_mean(self):
        """Squared error of N(a·mean, v), clipped to [0, 1]: the measured gap stays below the bound."""
        n, a, v, sets = 20, 0.9, 0.02, 20_000
        data = torch.randn(sets, n)
        w = a * data.mean(1, keepdim=True) + v**0.5 * torch.randn(sets, 1)
        loss = lambda x: (0.25 * (x - w).square()).clamp(max=1)  # noqa: E731
        gap = float(loss(torch.randn(sets, n)).mean() - loss(data).mean())
        bound = generalisation_bound(0.5 * math.log(1 + a**2 / (n * v)), n)
        assert 0 < gap < bound

    def test_sharpness_of_a_quadratic_is_half_its_trace(self):
        curvature = torch.tensor([1.0, 4.0, 9.0])
        log_scale = torch.tensor([0.1, 0.2, 0.3]).log()
        value = sharpness(lambda w: 0.5 * (curvature * w.square()).sum(-1), torch.zeros(3), log_scale, num_samples=40_000)
        assert value == pytest.approx(0.5 * float((curvature * (2 * log_scale).exp()).sum()), rel=0.03)
