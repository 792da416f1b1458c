"""ANIL: a few gradient steps of the last layer on the support; the network below is the same for all tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import SharedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
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
"""Weight in the loss of steps before the last: the loss is the adapted head's alone, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class AnilOptions(Options):
    """What may stand behind ``anil``.

    Args:
        steps: K, gradient steps on the support.
        size: of the steps, where training starts.
        learned: learn a size for each step (as MAML++ does), or keep the one there is.
        per_feature: learn one for each dimension too, as Meta-SGD does.
        first_order: no second derivatives.
    """

    steps: PositiveInt = 5
    size: PositiveNumber = 3.0
    learned: bool = True
    per_feature: bool = False
    first_order: bool = False


OPTIONS = AnilOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One, with K steps: a point for each task."""
    own = read_given(AnilOptions, swept.given)
    return [Variant("anil", "linear", Family.DELTA.value, None, own.steps, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """φ ← φ − α ∇_φ mean_{i∈support} −log p(y_i given x_i, φ), K times, of a linear head φ that starts with all classes alike.

    Sources: Raghu et al. 2020, "Rapid learning or feature reuse?", section 4; Finn et al. 2017, algorithm 2. The head starts
    with one learned row for all classes, where theirs has a row for each number: so no prediction depends on how classes are
    numbered.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    return adapted_head(read_given(AnilOptions, variant.given), means.shape[-1])


def adapted_head(own: AnilOptions, num_features: int, *, decay: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """Model and guide of :func:`build`, for features of so many dimensions.

    Args:
        own: the method's options.
        decay: weight decay in the steps on the support.
    """
    prior = GaussianPrior(torch.zeros(num_features), torch.ones(num_features), learned=False)  # of a point it says nothing
    predictor, start = LinearPredictor(10.0), SharedStart(torch.zeros(num_features))
    start.log_scale.requires_grad_(False)  # nor of its scale
    rule = GradientStep(
        own.steps,
        num_features,
        size=own.size,
        learned=own.learned or own.per_feature,
        per_feature=own.per_feature,
        point=True,
        decay=decay,
    )
    guide = UnrolledGuide(
        prior,
        predictor,
        start,
        ExactGradient(CategoricalLikelihood()),
        rule,
        steps=own.steps,
        on=Evidence.SUPPORT,
        beta=0.0,
        family=Family.DELTA,
        first_order=own.first_order,
        reduction=Reduction.MEAN,
    )
    return EmpiricalBayesModel(prior, predictor, TemperedCategorical()), guide
