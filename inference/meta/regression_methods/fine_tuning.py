"""Fine-tuning: many gradient steps on the support from random weights, and no meta-training: what every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from guides.tasks.families import Family
from inference.evaluation.predictive import predictive
from inference.meta.choices import read_given
from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_methods import maml
from inference.meta.regression_tasks import AMBIGUOUS, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber

TASKS = 200  # that the noise is read off


PROBLEMS = ("linear", "network", "sinusoids", AMBIGUOUS)


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(Options):
    """What may stand behind ``fine-tuning``.

    Args:
        steps: gradient steps on the support.
        size: of the steps; that of maml when not given.
    """

    steps: PositiveInt = 100
    size: PositiveNumber | None = None


OPTIONS = FineTuningOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One: a point for each task."""
    own = read_given(FineTuningOptions, swept.given)
    name = "linear" if problem.name == "linear" else "network"
    return [Variant("fine-tuning", name, Family.DELTA.value, None, own.steps, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """As :func:`inference.meta.regression_methods.maml.build`, from weights that stay as they were drawn (linear: 0)."""
    own = read_given(FineTuningOptions, variant.given)
    fit = maml.build_steps(setup, maml.MamlOptions(steps=own.steps, size=own.size))
    for parameter in fit.parameters():
        parameter.requires_grad_(False)
    return fit


@torch.no_grad()
def train(setup: Setup, variant: Variant) -> Fit:
    """Nothing is, but for the noise: the root mean squared error of some training tasks, its most likely value."""
    fit = build(setup, variant)
    episode = fit.embed(setup.draw(TASKS, setup.schedule.seed))
    assert episode.query_y is not None
    errors = predictive(fit.model, fit.guide, episode).labels.mean[0] - episode.query_y
    fit.model.likelihood.log_noise.copy_(0.5 * errors.square().mean().log())
    return fit
