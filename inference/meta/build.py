"""From options to model, guide and objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.seeding import seeded
from guides.tasks.gradient_networks import EquivariantGradient, ExactGradient, MLPGradient
from guides.tasks.hyper import HyperGuide
from guides.tasks.starts import LearnedStart, QueryMeans, SupportMeans
from guides.tasks.unrolled import SyntheticGradientGuide
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.meta.options import SibOptions, Variant
from models.likelihoods import CategoricalLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import PREDICTORS
from models.tasks.priors import GaussianPrior, HierarchicalGaussianPrior, MixturePrior, Prior

START_SCALE = 0.3  # initial posterior standard deviation, in units of the prior's


def build_objective(options: SibOptions, variant: Variant, means: Tensor) -> RateDistortionModule:
    """Model, guide and objective of one variant, initialised from the base classes.

    Args:
        means: ``[base classes, D]``, the base classes' mean features; the prior starts at their moments.
    """
    with seeded(options.seed):
        prior = build_prior(options, means)
        predictor = PREDICTORS[variant.predictor]()
        model = EmpiricalBayesModel(prior, predictor, num_tasks=options.tasks if options.prior == "hierarchical" else None)
        guide = SyntheticGradientGuide(
            prior,
            predictor,
            build_initialisation(options, means),
            build_gradient(options),
            num_features=means.shape[-1],
            steps=variant.steps,
            inner_lr=options.inner_lr,
            learn_inner_lr=options.learn_inner_lr,
            beta=variant.beta,
            whiten=options.whiten,
            inner_samples=options.inner_samples,
            family=options.posterior,
            hyper=HyperGuide(prior) if isinstance(prior, HierarchicalGaussianPrior) else None,
            num_tasks=model.num_tasks,
        )
    return RateDistortionELBO(beta=variant.beta)(model, guide)


def build_prior(options: SibOptions, means: Tensor) -> Prior:
    """p_ψ(w), started at the moments of the base classes."""
    if options.prior == "mixture":
        return MixturePrior.from_class_means(means)
    kind = HierarchicalGaussianPrior if options.prior == "hierarchical" else GaussianPrior
    return kind.from_class_means(means)


def build_initialisation(options: SibOptions, means: Tensor) -> nn.Module:
    """λ."""
    scale = START_SCALE * means.std(0).clamp_min(1e-3)
    if options.initialisation == "support":
        return SupportMeans(means.shape[-1], scale)
    kind = LearnedStart if options.initialisation == "learned" else QueryMeans
    return kind(means.shape[-1], options.way, scale)


def build_gradient(options: SibOptions) -> nn.Module:
    """ξ, or the exact gradient."""
    if options.gradient == "exact":
        return ExactGradient(CategoricalLikelihood())
    return EquivariantGradient() if options.gradient == "equivariant" else MLPGradient(options.way)


def blank_means(num_classes: int, num_features: int) -> Tensor:
    """Stands in for class means where the parameters are loaded afterwards."""
    return torch.eye(num_classes, num_features)
