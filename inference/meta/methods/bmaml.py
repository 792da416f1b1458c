"""Bayesian MAML of the last layer: particles of a linear head, which Stein variational descent takes to the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.particles import ParticleMeans, ParticleStart, SteinGuide, SteinStep
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.tasks.particles import ParticleModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

EARLIER = 0.0
"""Weight in the loss of steps before the last: the loss is of where the particles end, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class BmamlOptions(Options):
    """What may stand behind ``bmaml``.

    Args:
        particles: M.
        steps: K, of all particles on the support.
        size: of the steps, where training starts.
        learned: learn a size for each step, or keep the one there is, as the chaser does.
        scale: standard deviation of the prior around 0, where training starts; both are learned for each dimension, but for the
            chaser, which would make a prior that nothing leaves.
        start: of each particle: alike, one row for every class, as anil has it, so that particles differ in little that tells
            classes apart; or means, its own multiples of the class means, see :class:`~guides.tasks.particles.ParticleMeans`.
        width: of the kernel, relative to the median heuristic.
        loss: of training: mixture, distortion or chaser, see :class:`~models.tasks.particles.ParticleLoss`.
        leader_steps: of the chaser: how many steps the leader is ahead.
        first_order: no second derivatives.
    """

    particles: PositiveInt = 5
    steps: PositiveInt = 5
    size: PositiveNumber = 3.0
    learned: bool = True
    scale: PositiveNumber = 1.0
    start: Literal["alike", "means"] = "alike"
    width: PositiveNumber = 1.0
    loss: Literal["mixture", "distortion", "chaser"] = "mixture"
    leader_steps: PositiveInt = 1
    first_order: bool = False


OPTIONS = BmamlOptions
STARTS = {"alike": ParticleStart, "means": ParticleMeans}
SPREAD = 0.3  # standard deviation of the numbers that particles start with


def variants(swept: VariantSettings) -> list[Variant]:
    """One, with K steps."""
    own = read_given(BmamlOptions, swept.given)
    return [Variant("bmaml", "linear", "particles", None, own.steps, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """θ_m ← θ_m + η/M Σ_l [k(θ_l, θ_m) ∇ log p(θ_l given support) + ∇_{θ_l} k(θ_l, θ_m)] / support, K times, of a linear head;
    the queries are the mean over particles of their softmax.

    Source: Kim et al. 2018; of heads, for which no prediction depends on how classes are numbered.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own, num_features = read_given(BmamlOptions, variant.given), means.shape[-1]
    prior = GaussianPrior(torch.zeros(num_features), torch.full((num_features,), own.scale), learned=own.loss != "chaser")
    predictor = LinearPredictor(10.0)
    guide = SteinGuide(
        prior,
        predictor,
        STARTS[own.start](SPREAD * torch.randn(own.particles, num_features)),
        ExactGradient(CategoricalLikelihood()),
        SteinStep(own.steps, size=own.size, learned=own.learned and own.loss != "chaser", width=own.width),
        steps=own.steps,
        first_order=own.first_order,
        leader_steps=own.leader_steps,
    )
    return ParticleModel(prior, predictor, TemperedCategorical(), loss=own.loss, leader=guide.lead), guide
