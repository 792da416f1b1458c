"""Compiled steps: the numbers, gradients and draws of steps that are not."""

import shutil
import warnings

import pytest
import torch

from benchmarks.speed.bnn import SIZES, ours
from inference.runs.graphs import CapturedTerms
from tests.inference.runs.test_graphs import CASES, check_a_graph, objective_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")]


@pytest.fixture(autouse=True)
def at_once(monkeypatch, tmp_path) -> None:
    """Shapes are compiled when they come for the first time, and nothing is known of them."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(CapturedTerms, "worth_compiling", 1)


def test_a_compiled_step_gives_the_numbers_and_gradients_of_the_step():
    with warnings.catch_warnings(action="error"):
        check_a_graph(objective_of(**CASES["draws in the steps"]), "cpu", compiles=True, rounding=1e-10)


def test_a_compiled_step_of_a_bayesian_network_draws_as_the_step_does():
    x, y = torch.randn(32, SIZES[0]), torch.randint(SIZES[-1], (32,))
    both = [ours(x, y, 2, compiled=compiled) for compiled in (False, True)]
    found = []
    for one in both:
        torch.manual_seed(1)
        losses = [one.loss() for _ in range(3)]
        found.append((torch.stack(losses), torch.autograd.grad(losses[-1], one.means)[0]))
    (losses, gradient), (expected, expected_gradient) = found
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    assert (gradient - expected_gradient).norm() < 1e-4 * gradient.norm()
    assert losses.unique().numel() == 3
