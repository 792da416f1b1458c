"""Checks of posterior files: coverage, regret against a sampler's file, mixing, and what is no such file."""

import os

import arviz
import numpy as np
import pytest
import torch
from scipy import stats

from data.errors import UserError
from inference.diagnostics.files import chain_means, examine_files, levels
from inference.evaluation.posterior import infer
from inference.meta.regression_guides import build_regression
from inference.meta.regression_tasks import Problem

ITEMS, DRAWS = 400, 500


def regression_file(folder, name, widen=1.0, shift=0.0, chains=2, stuck=0.0):
    """Items y ~ N(0, 1) predicted by N(shift, widen²), as draws of a mean that hardly varies."""
    rng = np.random.default_rng(len(name))
    y = np.random.default_rng(0).normal(size=ITEMS)
    mean = shift + 1e-3 * rng.normal(size=(chains, DRAWS, ITEMS))
    mean[0, :, 0] += stuck
    density = -0.5 * ((y - mean) / widen) ** 2 - np.log(widen) - 0.5 * np.log(2 * np.pi)
    predictions = {"y": mean + widen * rng.normal(size=mean.shape), "mean": mean, "log_density": density}
    data = arviz.from_dict(predictions=predictions, predictions_constant_data={"y": y})
    data.to_netcdf(str(folder / f"{name}.nc"))
    return folder / f"{name}.nc"


def test_coverage_and_regret_against_the_sampler(tmp_path):
    paths = [regression_file(tmp_path, "narrow", widen=0.5), regression_file(tmp_path, "nuts")]
    narrow, nuts = examine_files(paths)
    assert nuts.coverage90 == pytest.approx(0.9, abs=0.04)
    assert narrow.coverage90 == pytest.approx(0.59, abs=0.05), "P(|z| < 0.82)"
    assert nuts.regret is None
    assert nuts.r_hat < 1.05
    # E[log N(y; 0, 1) − log N(y; 0, ½²)] = ½ (4 − 1) − log 2
    assert narrow.regret.mean == pytest.approx(1.5 - np.log(2), abs=1.5 * narrow.regret.ci95)
    assert narrow.regret.tasks == ITEMS
    assert narrow.nll - nuts.nll == pytest.approx(narrow.regret.mean, abs=1e-6)
    assert "chains have mixed" in nuts.verdict


def test_one_item_on_which_chains_differ_is_enough_to_say_so(tmp_path):
    (nuts,) = examine_files([regression_file(tmp_path, "nuts", stuck=0.1)])
    assert nuts.r_hat > 1.5
    assert "chains have not mixed" in nuts.verdict


def test_the_density_of_a_chain_is_the_mean_over_its_draws():
    logs = torch.randn(2, 5, 3)
    torch.testing.assert_close(chain_means(logs), logs.exp().mean(1).log())


def test_files_that_sibyl_writes_are_read(tmp_path):
    """Of eight tasks of linear regression under the exact posterior; the noise is learned from scratch, so it is too wide."""
    objective, episode = build_regression("linear", 1.0), Problem("linear").tasks(8, queries=30, seed=0)
    content = infer(objective.model, objective.guide, episode).to_arviz(episode.query_y, num_samples=400)
    content.to_netcdf(str(tmp_path / "exact.nc"))
    (found,) = examine_files([tmp_path / "exact.nc"])
    assert found.coverage90 > 0.97
    assert found.levels.shape == (8, 30)
    assert found.nll > 1


def test_class_probabilities_have_a_calibration_error(tmp_path):
    labels = np.tile([0, 1], 50)
    of_one = np.tile([0.2, 0.8], 5)[None, :, None] + np.zeros(100)  # draws that are right on average alone
    probabilities = np.stack([1 - of_one, of_one], -1)
    density = np.log(np.where(labels, of_one, 1 - of_one))
    groups = {"predictions": {"probabilities": probabilities, "log_density": density, "labels": np.zeros((1, 10, 100))}}
    arviz.from_dict(**groups, predictions_constant_data={"labels": labels}).to_netcdf(str(tmp_path / "even.nc"))
    (found,) = examine_files([tmp_path / "even.nc"])
    assert found.ece == pytest.approx(0, abs=1e-6)
    assert found.nll == pytest.approx(np.log(2))
    assert found.levels is None
    assert found.drawn.shape == (10, 100, 2)


def test_what_is_no_posterior_file_is_said(tmp_path):
    broken = tmp_path / "broken.nc"
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.nc is damaged or no InferenceData file"):
        examine_files([broken])
    arviz.from_dict(posterior={"w": np.zeros((1, 10))}).to_netcdf(str(tmp_path / "bare.nc"))
    with pytest.raises(UserError, match="holds no predictions"):
        examine_files([tmp_path / "bare.nc"])
    density = np.zeros((1, 10, 4))
    known = {"predictions_constant_data": {"labels": np.zeros(4)}}
    arviz.from_dict(predictions={"log_density": density, "y": density, "mean": density}, **known).to_netcdf(
        str(tmp_path / "foreign.nc")
    )
    with pytest.raises(UserError, match="holds no predictions"):
        examine_files([tmp_path / "foreign.nc"])


@pytest.mark.parametrize("rate", [0.3, 2.0, 9.0])
def test_levels_of_right_predictions_of_counts_are_uniform(rate):
    """Counts equal to the target are neither below nor above it."""
    rng = np.random.default_rng(0)
    found = levels(rng.poisson(rate, size=(2, 300, 4000)), rng.poisson(rate, size=4000)).numpy()
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert levels(np.ones((1, 10, 1)), np.array([2.0])).item() == 1
    assert levels(np.ones((1, 10, 1)), np.array([0.0])).item() == 0


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(UserError, match=r"pipe\.nc is a pipe: give a file"):
        examine_files([tmp_path / "pipe.nc"])
