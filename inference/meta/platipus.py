"""PLATIPUS and MAML with noise as a model and a guide, for any predictor and likelihood."""

from __future__ import annotations

import torch
from torch import nn

from guides.tasks.families import Family
from guides.tasks.query_informed import Adaptation, DescentGaussian, QueryInformedGuide
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart, SharedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
from models.likelihoods import Likelihood
from models.parameters import declare
from models.tasks.adapted import AdaptedModel
from models.tasks.predictors import Predictor
from models.tasks.priors import GaussianPrior


def build_platipus(
    predictor: Predictor,
    start: LearnedStart | SharedStart,
    gradient: nn.Module,
    likelihood: Likelihood,
    *,
    steps: int,
    size: float,
    learned: bool = False,
    prior_size: float,
    scale: float,
    floor: float = 1e-3,
    noise_only: bool = False,
    first_order: bool = False,
) -> tuple[AdaptedModel, QueryInformedGuide]:
    """p(θ given D) = N(μ − γ_p ∇L(μ, D), σ²), q(θ given D_query) = N(μ − γ_q ∇L(μ, D_query), v_q) and φ = θ − α ∇L(θ, D), K
    times; L is a mean over the items of D.

    Learned are μ, γ_p, γ_q, σ and v_q; σ and v_q have a number for each dimension. The objective is
    Σ_queries −log p(y given x, φ) + β KL(q ‖ p). A KL weight κ beside the *mean* loss of n queries, as the paper's 0.05 and
    0.15, is β = n κ.

    Source: Finn, Xu and Levine 2018, algorithms 1 and 2. With ``noise_only`` it is their comparison "MAML + noise": p(θ) =
    N(μ, σ²), with σ as given and no q. (σ would be learned to be 0: nothing rewards noise where there is no KL.)

    Args:
        predictor: ŷ.
        start: μ, initial.
        gradient: of L, from outputs and labels to ∂(−log p)/∂ŷ.
        likelihood: of the queries.
        steps: K.
        size: α, ``learned`` for each step or known.
        prior_size: initial γ_p and γ_q.
        scale: initial σ and √v_q.
        floor: the least of both.
        first_order: no second derivatives.
    """
    known_scale = start.log_scale.detach()
    del start.log_scale
    declare(start, "log_scale", known_scale, learned=False)  # μ is a point
    features = start.loc.shape[-1]
    known = GaussianPrior(torch.zeros(features), torch.ones(features), learned=False)  # of a point it says nothing

    def descent(count: int, step: float, learned: bool, on: Evidence) -> UnrolledGuide:
        return UnrolledGuide(
            known,
            predictor,
            start,
            gradient,
            GradientStep(count, features, size=step, learned=learned, point=True),
            steps=count,
            on=on,
            beta=0.0,
            family=Family.DELTA,
            first_order=first_order,
            reduction=Reduction.MEAN,
        )

    informed, support = not noise_only, Evidence.SUPPORT
    prior = DescentGaussian(descent(int(informed), prior_size, informed, support), scale, floor=floor, learned=informed)
    posterior = DescentGaussian(descent(1, prior_size, True, Evidence.QUERIES), scale, floor=floor) if informed else None
    adapt = Adaptation(descent(steps, size, learned, support))
    return AdaptedModel(prior, adapt, predictor, likelihood), QueryInformedGuide(prior, posterior)
