"""The guide of SIB: K steps of synthetic gradient descent on the unlabelled queries."""

from __future__ import annotations

from typing import Any

from torch import nn

from guides.tasks.rules import Rule
from guides.tasks.unrolled import Evidence, UnrolledGuide
from models.tasks.predictors import Predictor
from models.tasks.priors import Prior


class SyntheticGradientGuide(UnrolledGuide):
    """q_θ(w_t) with θ found by unrolling, from θ⁰ = λ(support, queries),

        θ ← θ − η [ E_ε Σ_i ξ(ŷ_i) ∂ŷ_i/∂w ∂w(θ, ε)/∂θ + β ∇_θ KL(q_θ ‖ p_ψ) ],

    the sum being over the queries. Their labels are not used (but for the exact-gradient reference), so training and testing
    run the same program. With an ``anchor`` the labelled support is summed over, too, and the ``rule`` says in what units η is.
    Source: Hu et al. 2019, equation 9.

    Args:
        prior, predictor, start, gradient, rule, options: as in :class:`~guides.tasks.unrolled.UnrolledGuide`; ``gradient`` is
            ξ.
    """

    capturable = True  # by :class:`~inference.runs.graphs.CapturedTerms`

    def __init__(
        self, prior: Prior, predictor: Predictor, start: nn.Module, gradient: nn.Module, rule: Rule, **options: Any
    ) -> None:
        super().__init__(prior, predictor, start, gradient, rule, on=Evidence.QUERIES, **options)
