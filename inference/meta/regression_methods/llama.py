"""LLAMA: gradient steps of all weights, and Laplace's approximation of the posterior around where they end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from data.episodes import Episode
from data.seeding import seeded
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.laplace import LaplaceGuide, PriorStart
from guides.tasks.rules import GradientStep
from inference.meta.choices import read_given
from inference.meta.regression_fits import (
    PARTICLES,
    Fit,
    Setup,
    initial_weights,
    meta_train,
    objective_of,
    predictor_of,
)
from inference.meta.regression_methods.maml import SIZES, SQUARED_ERROR
from inference.meta.regression_tasks import AMBIGUOUS, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.priors import GaussianPrior

PROBLEMS = ("linear", "network", "sinusoids", AMBIGUOUS)


@dataclass(frozen=True, kw_only=True)
class LlamaOptions(Options):
    """What may stand behind ``llama``.

    Args:
        steps: K, gradient steps on the support.
        size: of the steps on the mean squared error, where training starts, that of maml when not given; learned for each step.
        scale: standard deviation of the prior around the start, where training starts; learned.
        scored: in training: queries, given the support; or support, so that β = 1 bounds the evidence of what the posterior has
            seen.
    """

    steps: PositiveInt = 5
    size: PositiveNumber | None = None
    scale: PositiveNumber = 0.3
    scored: Literal["queries", "support"] = "support"


OPTIONS = LlamaOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0."""
    own, name = read_given(LlamaOptions, swept.given), "linear" if problem.name == "linear" else "network"
    return [Variant("llama", name, "laplace", beta, own.steps, given=swept.given) for beta in swept.beta if beta > 0]


def build(setup: Setup, variant: Variant) -> Fit:
    """q = N(φ, (σ⁻² + Jᵀ J / (β noise²))⁻¹), φ after K steps from the prior's mean; the curvature is that of all weights.

    Source: Grant et al. 2018, subroutine ML-LAPLACE, by the bound in place of −log p + η log det, with all of the curvature
    where theirs is factored.
    """
    own = read_given(LlamaOptions, variant.given)
    assert variant.beta is not None
    predictor = predictor_of(setup.problem)
    with seeded(setup.schedule.seed):
        weights = initial_weights(predictor, setup.problem.num_inputs)
    prior = GaussianPrior(weights, torch.full_like(weights, own.scale))
    likelihood = GaussianLikelihood(1.0)
    guide = LaplaceGuide(
        prior,
        predictor,
        PriorStart(prior),
        ExactGradient(GaussianLikelihood(SQUARED_ERROR, learned=False)),
        GradientStep(
            own.steps, len(weights), size=(own.size or SIZES[setup.problem.name]) / setup.problem.shot, learned=True, point=True
        ),
        likelihood,
        steps=own.steps,
        beta=variant.beta,
    )
    return Fit(objective_of(EmpiricalBayesModel(prior, predictor, likelihood), guide, variant.beta, PARTICLES))


def train(setup: Setup, variant: Variant) -> Fit:
    """On what is to be scored."""
    own = read_given(LlamaOptions, variant.given)
    return meta_train(build(setup, variant), setup, Episode.on_support if own.scored == "support" else None)
