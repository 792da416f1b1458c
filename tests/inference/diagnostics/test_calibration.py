"""Simulation-based calibration: a right posterior passes, a wrong one fails by its kind, and levels are what they say."""

import pytest
import torch

from inference.diagnostics.calibration import (
    LOG_LIKELIHOOD,
    Calibration,
    calibrate,
    central_coverage,
    distribution_level,
    simultaneous_band,
)

SIMULATIONS, DRAWS = 500, 99


def gaussian_case(widen=1.0, shift=0.0, seed=0):
    """w ~ N(0, 1), y ~ N(w, ½²): the truth, and draws of the exact posterior, made wrong on purpose."""
    torch.manual_seed(seed)
    truth = torch.randn(SIMULATIONS, 4)
    y = truth + 0.5 * torch.randn(SIMULATIONS, 4)
    mean, scale = y / 1.25, (1 / 5) ** 0.5
    return truth, mean + shift * scale + widen * scale * torch.randn(DRAWS, SIMULATIONS, 4)


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_posterior_passes(seed):
    found = calibrate(*gaussian_case(seed=seed))
    assert found.passed
    assert found.verdict.startswith("passes (500 simulations, 4 coordinates")
    torch.testing.assert_close(found.spread, torch.ones(4, dtype=torch.float64), atol=0.15, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "words"), [({"widen": 0.5}, "too narrow"), ({"widen": 2}, "too wide"), ({"shift": 0.4}, "shifted")]
)
def test_a_wrong_posterior_fails_and_is_called_by_its_kind(wrong, words):
    found = calibrate(*gaussian_case(**wrong))
    assert not found.inside.any()
    assert words in found.verdict


@pytest.mark.parametrize(("rank", "words"), [(DRAWS, "worse than the truth"), (0, "better than the truth")])
def test_the_log_likelihood_lies_to_a_side_and_does_not_count_as_narrow(rank, words):
    truth, draws = gaussian_case(widen=2)
    ranks = calibrate(truth, draws).ranks.clone()
    ranks[:, -1] = rank
    found = Calibration(("w1", "w2", "w3", LOG_LIKELIHOOD), ranks, DRAWS)
    assert f"4 of 4 coordinates leave the band, mostly too wide, draws explain the data {words}" in found.verdict
    alone = Calibration((LOG_LIKELIHOOD,), ranks[:, -1:], DRAWS).verdict
    assert "leave the band, draws explain the data" in alone


def test_ranks_are_uniform_over_all_values_also_among_ties():
    ranks = calibrate(torch.zeros(4000, 1), torch.zeros(3, 4000, 1)).ranks[:, 0]
    counts = torch.bincount(ranks, minlength=4)
    assert counts.numel() == 4
    assert ((counts - 1000).abs() < 4 * 750**0.5).all()
    truth = torch.tensor([[0.5]])
    assert calibrate(truth, torch.tensor([0.1, 0.2, 0.9])[:, None, None]).ranks.tolist() == [[2]]


def test_the_band_holds_uniform_ranks_as_often_as_its_level_says():
    """2000 times 50 uniform ranks: 5 % leave the 95 % band somewhere, and far more the pointwise one."""
    lower, upper = simultaneous_band(50, 9, 0.95)
    torch.manual_seed(0)
    ranks = torch.randint(10, (2000, 50, 1))
    distribution = (ranks <= torch.arange(10)).double().mean(1).numpy()
    left = ((distribution < lower - 1e-9) | (distribution > upper + 1e-9)).any(-1).mean()
    assert 0.02 < left < 0.06  # conservative: ranks are discrete


@pytest.mark.parametrize("edge", [0, 1])
@pytest.mark.parametrize("simulations", [50, 200, 500])
def test_the_edges_of_the_band_lie_inside_it(simulations, edge):
    counts = torch.as_tensor(simultaneous_band(simulations, DRAWS, 0.95)[edge] * simulations).round().long()
    ranks = torch.arange(DRAWS + 1).repeat_interleave(counts.diff(prepend=torch.zeros(1, dtype=torch.long)))
    assert Calibration(("w",), ranks[:, None], DRAWS).passed
    nearer, further = (ranks + shift for shift in ((1, -1) if edge else (-1, 1)))
    assert Calibration(("w",), nearer.clamp(0, DRAWS)[:, None], DRAWS).passed
    assert not Calibration(("w",), further.clamp(0, DRAWS)[:, None], DRAWS).passed


def test_a_right_posterior_fails_as_often_as_the_level_says():
    """400 times 200 simulations of two coordinates: at a level of 80 % it is 80 of them, and 110 would be 3.7 σ more."""
    generator = torch.Generator().manual_seed(0)
    found = (torch.randint(DRAWS + 1, (200, 2), generator=generator) for _ in range(400))
    failed = sum(not Calibration(("a", "b"), ranks, DRAWS, 0.8).passed for ranks in found)
    assert 50 < failed < 110


def test_the_verdict_is_corrected_for_the_number_of_coordinates():
    truth, draws = gaussian_case()
    many = calibrate(truth.repeat(1, 10), draws.repeat(1, 1, 10))
    few = calibrate(truth, draws)
    assert (many.band()[1] >= few.band()[1]).all()
    assert (many.band()[1] > few.band()[1]).any()


def test_coverage_counts_central_intervals():
    levels = torch.linspace(0.0005, 0.9995, 1000)
    assert central_coverage(levels, (0.5, 0.9)) == pytest.approx({0.5: 0.5, 0.9: 0.9}, abs=0.002)
    two = torch.distributions.Normal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    assert float(distribution_level(two, torch.tensor([0.0]))) == pytest.approx(0.5)
