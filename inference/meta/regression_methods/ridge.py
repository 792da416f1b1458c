"""Bayesian ridge regression on features that are learned for it: a closed form, with its exact posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from data.seeding import seeded
from guides.tasks.conjugate import ConjugateGuide
from inference.meta.choices import read_given
from inference.meta.regression_fits import Bumps, Fit, Setup, Trunk, meta_train, objective_of, whole
from inference.meta.regression_tasks import Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

BUMPS = 40


@dataclass(frozen=True, kw_only=True)
class RidgeOptions(Options):
    """What may stand behind ``ridge``.

    Args:
        features: learned, the last hidden layer of the problem's network and 1; or bumps, radial basis functions of the input.
            Inputs of ``linear`` are features themselves.
    """

    features: Literal["learned", "bumps"] = "learned"


OPTIONS = RidgeOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0."""
    read_given(RidgeOptions, swept.given)
    return [Variant("ridge", "linear", "matrix", beta, 0, given=swept.given) for beta in swept.beta if beta > 0]


def build(setup: Setup, variant: Variant) -> Fit:
    """p(w given support) of y = ⟨f(x), w⟩ + noise in closed form, prior and noise learned, f too.

    Sources: Harrison et al. 2018, "Meta-learning priors for efficient online Bayesian regression" (ALPaCA), section 3, with a
    diagonal prior; Bertinetto et al. 2019 (R2-D2), whose ridge regression is the mean.
    """
    own = read_given(RidgeOptions, variant.given)
    assert variant.beta is not None
    space, size = features_of(setup, own.features)
    prior, likelihood = GaussianPrior(torch.zeros(size), torch.ones(size)), GaussianLikelihood(1.0)
    model = EmpiricalBayesModel(prior, LinearPredictor(1.0, learned=False), likelihood)
    guide = ConjugateGuide(prior, likelihood, beta=variant.beta)
    return Fit(objective_of(model, guide, variant.beta).double(), space.double())


def features_of(setup: Setup, name: str) -> tuple[nn.Module, int]:
    """Features by ``name``, and how many they are."""
    if setup.problem.name == "linear":
        return nn.Identity(), setup.problem.num_inputs
    if name == "bumps":
        return Bumps(), BUMPS
    with seeded(setup.schedule.seed):
        trunk = Trunk(setup.problem)
    return trunk, trunk.num_features


def train(setup: Setup, variant: Variant) -> Fit:
    """On the evidence of all points of a task, which is −(distortion + rate) of its exact posterior."""
    return meta_train(build(setup, variant), setup, whole)
