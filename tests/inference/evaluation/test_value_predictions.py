"""Predictions of real targets: quantiles of mixtures against their distribution functions, and coverage."""

import pyro.distributions as dist
import pytest
import torch

from inference.evaluation.value_predictions import ValuePredictions, normal_quantile, predictive_interval


def test_quantiles_of_a_mixture_invert_its_distribution_function(float64):
    loc, scale = 3 * torch.randn(7, 50), torch.rand(7, 50) + 0.01
    for probability in (0.05, 0.5, 0.95):
        edge = normal_quantile(loc, scale, probability)
        below = dist.Normal(loc, scale).cdf(edge).mean(0)
        torch.testing.assert_close(below, torch.full((50,), probability), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_nine_in_ten_targets_lie_in_the_interval(shape):
    loc = torch.randn(50, 400, *shape)
    gaussian = dist.Normal(loc, 0.5).to_event(len(shape))
    heavy = dist.StudentT(3.0, loc, 0.5).to_event(len(shape))
    for observation in (gaussian, heavy):
        lower, upper = predictive_interval(observation)
        assert lower.shape == (400, *shape)
        targets = observation.sample()[torch.randint(50, (400,)), torch.arange(400)]
        inside = ((lower <= targets) & (targets <= upper)).float().mean()
        assert float(inside) == pytest.approx(0.9, abs=4 * (0.09 / lower.numel()) ** 0.5)


def test_batches_join():
    observation = dist.Normal(torch.randn(6, 5, 2), 0.3).to_event(1)
    whole = ValuePredictions.from_draws(observation)
    parts = [ValuePredictions.from_draws(dist.Normal(whole.draws[:, i : i + 1], 0.3).to_event(1)) for i in range(5)]
    joined = ValuePredictions.concatenate(parts)
    assert len(joined) == 5
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(joined, name), value)
