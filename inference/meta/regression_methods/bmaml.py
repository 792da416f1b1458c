"""Bayesian MAML: particles of all weights, which Stein variational descent takes from learned starts to the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data.seeding import seeded
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.particles import ParticleStart, SteinGuide, SteinStep
from inference.meta.choices import read_given
from inference.meta.regression_fits import Adaptable, Fit, Setup, initial_weights, meta_train, objective_of, predictor_of
from inference.meta.regression_methods.maml import SIZES, SQUARED_ERROR
from inference.meta.regression_tasks import Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import GaussianLikelihood
from models.tasks.particles import ParticleModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior


@dataclass(frozen=True, kw_only=True)
class BmamlOptions(Options):
    """What may stand behind ``bmaml``.

    Args:
        particles: M.
        steps: K, of all particles on the support.
        size: of the steps on the mean squared error, where training starts; M/2 times that of maml when not given, for with the
            others' a particle's own gradient counts about 2/M.
        learned: learn a size for each step, or keep the one there is, as the chaser does, and which is safe: a mixture hardly
            misses those of its particles that run away.
        scale: standard deviation of the prior around 0, where training starts; both are learned for each weight, but for the
            chaser, which would make a prior that nothing leaves.
        width: of the kernel, relative to the median heuristic.
        noise: standard deviation of the support's noise in the steps, which stays; that of predictions, which is learned with
            them, when not given.
        loss: of training: mixture, distortion or chaser, see :class:`~models.tasks.particles.ParticleLoss`.
        leader_steps: of the chaser: how many steps the leader is ahead.
        first_order: no second derivatives.
    """

    particles: PositiveInt = 5
    steps: PositiveInt = 5
    size: PositiveNumber | None = None
    learned: bool = False
    scale: PositiveNumber = 1.0
    width: PositiveNumber = 1.0
    noise: PositiveNumber | None = None
    loss: Literal["mixture", "distortion", "chaser"] = "mixture"
    leader_steps: PositiveInt = 1
    first_order: bool = False


OPTIONS = BmamlOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One, with K steps."""
    own, name = read_given(BmamlOptions, swept.given), "linear" if problem.name == "linear" else "network"
    return [Variant("bmaml", name, "particles", None, own.steps, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """θ_m ← θ_m + η 2σ²/(M n) Σ_l [k(θ_l, θ_m) ∇ log p(θ_l given support) + ∇_{θ_l} k(θ_l, θ_m)], K times, on a support of n;
    the queries are 1/M Σ_m N(f(x; θ_m), σ²), with the σ that the support has, learned as the prior is.

    Source: Kim et al. 2018. Their released code has M starts of all weights, too; scales of prior and noise are a particle's
    own there, have priors, and move with it.
    """
    own, problem = read_given(BmamlOptions, variant.given), setup.problem
    predictor, likelihood = predictor_of(problem), GaussianLikelihood(1.0)
    with seeded(setup.schedule.seed):
        starts = torch.stack([start_of(predictor, problem.num_inputs, own.scale) for _ in range(own.particles)])
    prior = GaussianPrior(torch.zeros_like(starts[0]), torch.full_like(starts[0], own.scale), learned=own.loss != "chaser")
    size = own.size or max(1.0, own.particles / 2) * SIZES[problem.name]
    guide = SteinGuide(
        prior,
        predictor,
        ParticleStart(starts),
        ExactGradient(GaussianLikelihood(SQUARED_ERROR, learned=False)),
        SteinStep(own.steps, size=size, learned=own.learned and own.loss != "chaser", width=own.width),
        steps=own.steps,
        first_order=own.first_order,
        leader_steps=own.leader_steps,
        likelihood=likelihood if own.noise is None else GaussianLikelihood(own.noise, learned=False),
    )
    model = ParticleModel(prior, predictor, likelihood, loss=own.loss, leader=guide.lead)
    return Fit(objective_of(model, guide, 0.0, own.particles))


def start_of(predictor: Adaptable, num_features: int, scale: float) -> Tensor:
    """Where a particle starts, ``[P]``: a network as any, a linear model at a draw of the prior of this ``scale``."""
    weights = initial_weights(predictor, num_features)
    return scale * torch.randn_like(weights) if isinstance(predictor, LinearPredictor) else weights


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return meta_train(build(setup, variant), setup)
