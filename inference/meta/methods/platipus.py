"""PLATIPUS and MAML with noise: weights drawn around a prior that has seen the support, then a few gradient steps on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.starts import LearnedStart, SharedStart
from inference.meta.choices import read_given
from inference.meta.methods.maml import network_predictor
from inference.meta.platipus import build_platipus
from inference.meta.settings import NETWORK, GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.tasks.predictors import LinearPredictor

EARLIER = 0.0
"""Weight in the loss of steps before the last: the loss is the adapted weights' alone."""


@dataclass(frozen=True, kw_only=True)
class PlatipusOptions(Options):
    """What may stand behind ``platipus``.

    Args:
        steps: K, gradient steps on the support from the weights that were drawn.
        size: α, of these steps; when not given 3 of a head, where training starts, and 0.01 of a whole network, kept.
        prior_size: γ, of the steps of prior and posterior, where training starts; size when not given.
        scale: standard deviation of prior and posterior, where training starts; that of noise_only stays.
        noise_only: MAML with noise: one Gaussian for all tasks is drawn from, and there is no posterior.
        whole: adapt a whole network of images, as maml does; else the last layer, on features.
        first_order: no second derivatives.
        norm: of a whole network, as of maml.
    """

    steps: PositiveInt = 5
    size: PositiveNumber | None = None
    prior_size: PositiveNumber | None = None
    scale: PositiveNumber | None = None
    noise_only: bool = False
    whole: bool = False
    first_order: bool = False
    norm: Literal["running", "task", "group"] = "running"


OPTIONS = PlatipusOptions
SIZES, SCALES = {False: 3.0, True: 0.01}, {False: 0.1, True: 0.01}
"""Of steps, and of standard deviations: of a head, and of a whole network."""


def variants(swept: VariantSettings) -> list[Variant]:
    """One for each β above 0; with noise alone one, which has no rate."""
    own = read_given(PlatipusOptions, swept.given)
    predictor, family = NETWORK if own.whole else "linear", Family.GAUSSIAN.value
    weights = (None,) if own.noise_only else tuple(beta for beta in swept.beta if beta > 0)
    return [Variant("platipus", predictor, family, beta, own.steps, given=swept.given) for beta in weights]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:func:`~inference.meta.platipus.build_platipus` of a linear head whose classes start alike, or of a whole network.

    Source: Finn, Xu and Levine 2018, algorithms 1 and 2.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D of a head.

    Raises:
        UserError: a whole network is to be adapted, and there are no images.
    """
    own = read_given(PlatipusOptions, variant.given)
    predictor: nn.Module
    if own.whole:
        predictor = network_predictor(settings, own.norm, "platipus")
        start: LearnedStart | SharedStart = LearnedStart.from_network(predictor.network)
    else:
        predictor, start = LinearPredictor(10.0), SharedStart(torch.zeros(means.shape[-1]))
    size = own.size or SIZES[own.whole]
    return build_platipus(
        predictor,
        start,
        ExactGradient(CategoricalLikelihood()),
        TemperedCategorical(),
        steps=own.steps,
        size=size,
        learned=not own.whole,
        prior_size=own.prior_size or size,
        scale=own.scale or SCALES[own.whole],
        noise_only=own.noise_only,
        first_order=own.first_order,
    )
