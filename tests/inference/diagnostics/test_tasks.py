"""Calibration of task models: the exact posterior of linear regression passes, wrong ones fail, the prior too."""

import torch

from guides.tasks.conjugate import ConjugateGuide
from guides.tasks.free import FreeGaussianGuide
from inference.diagnostics.calibration import central_coverage
from inference.diagnostics.tasks import OUTPUTS, calibrate_tasks, predictive_levels
from inference.meta.regression_tasks import Problem
from tests.inference.diagnostics.test_nuts import known_model


def tasks(count=500):
    return Problem("linear").tasks(count, queries=4, seed=11)


def test_the_exact_posterior_of_linear_regression_passes_and_one_with_scales_halved_fails():
    model = known_model()
    exact = ConjugateGuide(model.prior, model.likelihood)
    found = calibrate_tasks(model, exact, tasks())
    assert found.names == ("w1", "w2", "w3", *(f"output {i + 1}" for i in range(OUTPUTS)), "log likelihood")
    assert found.passed
    halved = calibrate_tasks(model, exact, tasks(), scale=0.5)
    assert not halved.inside.any()
    assert "too narrow" in halved.verdict


def test_a_posterior_that_has_learned_nothing_passes_on_weights_and_fails_on_the_likelihood():
    model, episode = known_model(), tasks()
    loc, scale = model.prior.loc, model.prior.log_scale.exp()
    prior = FreeGaussianGuide(loc.expand(len(episode.query_x), 1, -1), scale)
    found = calibrate_tasks(model, prior, episode)
    inside = dict(zip(found.names, found.inside.tolist(), strict=True))
    assert inside["w1"]
    assert inside["w2"]
    assert inside["w3"]
    assert not inside["log likelihood"]


def test_labels_are_not_read_and_seeds_repeat():
    model, episode = known_model(), tasks(20)
    exact = ConjugateGuide(model.prior, model.likelihood)
    first = calibrate_tasks(model, exact, episode).ranks
    scrambled = episode._replace(support_y=torch.zeros_like(episode.support_y), query_y=None)
    assert torch.equal(calibrate_tasks(model, exact, scrambled).ranks, first)
    assert not torch.equal(calibrate_tasks(model, exact, episode, seed=1).ranks, first)


def test_predictive_intervals_of_the_exact_posterior_cover_what_they_promise():
    model, episode = known_model(), tasks()
    levels = predictive_levels(model, ConjugateGuide(model.prior, model.likelihood), episode)
    assert abs(central_coverage(levels)[0.9] - 0.9) < 4 * (0.09 / levels.numel()) ** 0.5
