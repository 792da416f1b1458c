"""SIB: a learned prior over class weights, and a guide that unrolls synthetic gradients from the support's class means."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from data.semi_supervised import Unlabelled
from guides.tasks.families import Family
from guides.tasks.gate import PriorGate
from guides.tasks.gradient_networks import (
    EquivariantGradient,
    ExactGradient,
    GradientNetwork,
    LabelledGradient,
    MLPGradient,
)
from guides.tasks.hyper import HyperGuide
from guides.tasks.rules import GradientStep, Units
from guides.tasks.starts import LearnedStart, QueryMeans, Start, SupportMeans
from guides.tasks.synthetic import SyntheticGradientGuide
from inference.meta.named import find_predictor
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from models.likelihoods import CategoricalLikelihood, TemperedCategorical
from models.tasks.model import EmpiricalBayesModel
from models.tasks.priors import GaussianPrior, HierarchicalGaussianPrior, MixturePrior, Prior

START_SCALE = 0.3  # initial posterior standard deviation, in units of the prior's
GATE_SLOPE = 1.0  # the gate to the prior starts open by 1 / (1 + slope · β)
UNLABELLED = Unlabelled.QUERIES


def variants(swept: VariantSettings) -> list[Variant]:
    """Each predictor and β with K steps and, as an inductive reference, with none."""
    betas = swept.beta if Family(swept.posterior).has_rate else (None,)
    return [
        Variant("sib", predictor, swept.posterior, beta, steps, reference=steps != swept.steps)
        for predictor, beta, steps in itertools.product(swept.predictor, betas, dict.fromkeys((swept.steps, 0)))
    ]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """Model and guide, initialised from the base classes' mean features ``[base classes, D]``."""
    prior = build_prior(settings.prior, means)
    predictor = find_predictor(variant.predictor)()
    hierarchical = isinstance(prior, HierarchicalGaussianPrior)
    model = EmpiricalBayesModel(prior, predictor, TemperedCategorical(), num_tasks=settings.tasks if hierarchical else None)
    guide = SyntheticGradientGuide(
        prior,
        predictor,
        build_start(settings, means),
        build_gradient(settings),
        build_rule(settings, variant, means.shape[-1]),
        anchor=build_anchor(settings),
        steps=variant.steps,
        beta=variant.beta or 0.0,
        inner_samples=settings.inner_samples,
        family=variant.posterior or Family.DELTA,
        hyper=HyperGuide(prior) if isinstance(prior, HierarchicalGaussianPrior) else None,
        num_tasks=model.num_tasks,
        gate=build_gate(settings, variant, means.shape[-1]),
    )
    return model, guide


def build_prior(name: str, means: Tensor) -> Prior:
    """p_ψ(w), started at the moments of the base classes' ``means`` ``[classes, D]``."""
    if name == "mixture":
        return MixturePrior.from_class_means(means)
    kind = HierarchicalGaussianPrior if name == "hierarchical" else GaussianPrior
    return kind.from_class_means(means)


def build_start(settings: GuideSettings, means: Tensor) -> Start:
    """λ, started from the base classes' ``means`` ``[classes, D]``."""
    scale = START_SCALE * means.std(0).clamp_min(1e-3)
    if settings.initialisation == "support":
        return SupportMeans(means.shape[-1], scale, counted=settings.counted)
    kind = LearnedStart if settings.initialisation == "learned" else QueryMeans
    if len(means) == settings.way:  # the tasks' classes are the base classes, whose numbers never change
        return kind(means, scale)
    return kind.random(means.shape[-1], settings.way, scale)


def build_gate(settings: GuideSettings, variant: Variant, num_features: int) -> PriorGate | None:
    """The gate to the prior, where there is a rate; the larger β, the nearer to the prior training starts."""
    return PriorGate(num_features, opening(settings, variant)) if settings.gate and variant.beta else None


def opening(settings: GuideSettings, variant: Variant) -> float:
    """How far the gate is open at first; 1 where there is none."""
    return 1 / (1 + GATE_SLOPE * variant.beta) if settings.gate and variant.beta else 1.0


def build_gradient(settings: GuideSettings) -> GradientNetwork:
    """ξ, or the exact gradient."""
    if settings.gradient == "exact":
        return ExactGradient(CategoricalLikelihood())
    if settings.gradient == "mlp":
        return MLPGradient(settings.way)
    return EquivariantGradient() if settings.counted else EquivariantGradient(16, counted=False, drawn=False)


def build_anchor(settings: GuideSettings) -> GradientNetwork | None:
    """What the support pulls by, beside the equivariant ξ; the paper's ξ and the exact gradient stand alone."""
    anchored = settings.counted and settings.gradient == "equivariant" and settings.initialisation == "support"
    return LabelledGradient() if anchored else None


def build_rule(settings: GuideSettings, variant: Variant, num_features: int) -> GradientStep:
    """The gradient step; where it runs in the prior's or the posterior's units it starts well inside its bounds."""
    size, units = settings.inner_lr, Units(settings.units)
    if units is not Units.WEIGHTS and variant.beta:
        size = min(size, 0.25 / variant.beta)
    if units is Units.POSTERIOR:
        size /= START_SCALE ** (2 * opening(settings, variant))  # the same step, of the posterior that training starts from
    return GradientStep(variant.steps, num_features, size=size, learned=settings.learn_inner_lr, units=units)


def blank_means(num_classes: int, num_features: int) -> Tensor:
    """Stands in for class means where the parameters are loaded afterwards."""
    return torch.eye(num_classes, num_features)
