"""LLAMA: gradient steps of the last layer, and Laplace's approximation of the posterior around where they end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.laplace import LaplaceGuide, PriorStart
from guides.tasks.rules import GradientStep
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

EARLIER = 0.0
"""Weight in the loss of steps before the last: the posterior is where they end."""


@dataclass(frozen=True, kw_only=True)
class LlamaOptions(Options):
    """What may stand behind ``llama``.

    Args:
        steps: K, gradient steps on the support.
        size: of the steps, where training starts; learned for each step.
        scale: standard deviation of the prior around the start, where training starts; learned.
    """

    steps: PositiveInt = 5
    size: PositiveNumber = 0.05
    scale: PositiveNumber = 0.1


OPTIONS = LlamaOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One for each β above 0."""
    own = read_given(LlamaOptions, swept.given)
    return [Variant("llama", "linear", "laplace", beta, own.steps, given=swept.given) for beta in swept.beta if beta > 0]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """q = N(φ, (σ⁻² + Jᵀ Λ J / β)⁻¹) of a linear head, φ after K steps from the prior's mean, by the bound in place of the
    paper's −log p + η log det.

    Source: Grant et al. 2018, subroutine ML-LAPLACE, on the last layer, with all of its curvature where theirs is factored.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own, num_features = read_given(LlamaOptions, variant.given), means.shape[-1]
    assert variant.beta is not None
    prior = GaussianPrior(torch.zeros(num_features), torch.full((num_features,), own.scale))
    predictor, likelihood = LinearPredictor(10.0), TemperedCategorical()
    guide = LaplaceGuide(
        prior,
        predictor,
        PriorStart(prior),
        ExactGradient(CategoricalLikelihood()),
        GradientStep(own.steps, num_features, size=own.size, learned=True, point=True),
        CategoricalLikelihood(),  # no temperature: fitted afterwards, it would change how wide the posterior is
        steps=own.steps,
        beta=variant.beta,
    )
    return EmpiricalBayesModel(prior, predictor, likelihood), guide
