"""benchmarks/sinusoids.py: what it says of tasks whose steps run away."""

import pytest
import torch

from benchmarks import sinusoids
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods.maml import MamlOptions, build_steps
from inference.meta.regression_tasks import Problem
from inference.meta.settings import GuideSettings, MetaSchedule


def fit_of(size):
    torch.manual_seed(0)
    setup = Setup(Problem("sinusoids"), GuideSettings(), MetaSchedule(4, batch=2), sinusoids.QUERIES)
    return build_steps(setup, MamlOptions(size=size, test_steps=10))


def test_steps_that_run_away_are_infinite_and_counted():
    fit = fit_of(1e9)
    assert sinusoids.squared_errors(fit, 10, 3, 0).isinf().all()
    assert "3 that ran away" in sinusoids.report(fit, 3, 0)


def test_mean_and_median_are_of_the_tasks_errors(monkeypatch):
    errors = torch.tensor([1.0, 2.0, 6.0, 7.0])
    monkeypatch.setattr(sinusoids, "squared_errors", lambda *_: errors)
    half = 1.96 * float(errors.std()) / 2
    assert f"5: 4.000 ± {half:.3f} (median 2.000)" in sinusoids.report(None, 4, 0)
    monkeypatch.setattr(sinusoids, "squared_errors", lambda *_: torch.tensor([1.0, torch.inf, 3.0]))
    assert "5: 2.000 without 1 that ran away (median 3.000)" in sinusoids.report(None, 3, 0)


def test_errors_are_those_of_the_predictions():
    fit = fit_of(0.01)
    episode = sinusoids.draw(3, sinusoids.mix_seed(0, sinusoids.TEST), sinusoids.TEST_QUERIES)
    predicted = sinusoids.predictive(fit.model, fit.guide.after(5), fit.embed(episode)).labels.mean[0]
    expected = [float(((p - y) ** 2).mean()) for p, y in zip(predicted, episode.query_y, strict=True)]
    assert sinusoids.squared_errors(fit, 5, 3, 0).tolist() == pytest.approx(expected, rel=1e-6)
