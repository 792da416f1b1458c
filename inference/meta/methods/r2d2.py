"""R2-D2: ridge regression on the support's labels, in closed form; as a point, or with its exact posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.ridge import RidgeClassifierStart, RidgePosteriorGuide
from guides.tasks.rules import GradientStep
from guides.tasks.unrolled import Evidence, UnrolledGuide
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveNumber
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior


@dataclass(frozen=True, kw_only=True)
class RidgeOptions(Options):
    """What may stand behind ``r2d2``.

    Args:
        posterior: of a task's weights: point, as in the paper, or full, the exact Gaussian whose mean that is, with a rate.
        strength: λ, the weight of the weights' squares, where training starts.
        learned: whether λ is learned, and with a posterior its noise and prior; MetaOptNet's ridge head has it fixed.
    """

    posterior: Literal["point", "full"] = "point"
    strength: PositiveNumber = 1.0
    learned: bool = True


OPTIONS = RidgeOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One as a point; one for each β with a posterior."""
    own = read_given(RidgeOptions, swept.given)
    kinds = [("full", beta) for beta in swept.beta] if own.posterior == "full" else [(Family.DELTA.value, None)]
    return [Variant("r2d2", "linear", kind, beta, 0, given=swept.given) for kind, beta in kinds]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """Logits a ⟨x, w_c⟩ with w of ridge regression, and how sure w is where that is asked for.

    Source: Bertinetto et al. 2019, equation 4; Lee et al. 2019, section 3.2, the head "RR".

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own, num_features = read_given(RidgeOptions, variant.given), means.shape[-1]
    predictor = LinearPredictor(10.0)
    if own.posterior == "full":
        noise = 0.3
        scale = torch.full((num_features,), noise / own.strength**0.5)
        prior = GaussianPrior(torch.zeros(num_features), scale, learned=own.learned)  # λ = noise² / scale²
        guide: nn.Module = RidgePosteriorGuide(prior, noise, learned=own.learned)
        return EmpiricalBayesModel(prior, predictor, TemperedCategorical()), guide
    prior = GaussianPrior(torch.zeros(num_features), torch.ones(num_features), learned=False)  # of a point it says nothing
    start, gradient = RidgeClassifierStart(own.strength, learned=own.learned), ExactGradient(CategoricalLikelihood())
    rule = GradientStep(0, num_features, point=True)
    guide = UnrolledGuide(prior, predictor, start, gradient, rule, steps=0, on=Evidence.SUPPORT, beta=0.0, family=Family.DELTA)
    return EmpiricalBayesModel(prior, predictor, TemperedCategorical()), guide
