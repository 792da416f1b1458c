"""What methods that penalise memory have in common: models of random weights or codes, and their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from data.errors import UserError
from guides.tasks.regularised import CodesGuide, EncoderGuide
from inference.meta.regression_fits import IMAGE_CODES, Fit, Setup, encoder_of, objective_of
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import GaussianLikelihood, Likelihood
from models.tasks.regularised import CodedModel, EncodedScorer, GaussianEncoder, RegularisedModel, of_encoder
from models.tasks.scorers.base import Scorer

DRAWS = 20
"""Of weights or codes, that predictions are made of: each of them is adapted by itself."""
CODES_OF_NUMBERS = 5  # numbers of a code, usually, of inputs that are no images
MEANS = "means"  # of codes, in the place of draws

WEIGHTS, CODES, DECAY = "weights", "codes", "decay"
"""What is penalised: KL(q(θ) ‖ N(0, I)) of the encoder's weights θ (W); KL(q(z given x) ‖ N(0, I)) of its output for each query
(A); or ½‖θ‖² of weights that are a point, without noise."""


@dataclass(frozen=True, kw_only=True)
class RegularisedOptions(Options):
    """What may stand behind a method that penalises memory.

    Args:
        penalty: on the encoder's weights, its codes, or (decay) the weights as a point.
        weight: of the rate beside a mean over training tasks and queries, as Yin et al. have it; the run's beta, of an
            objective that is a sum over them, when not given.
        hidden: units of the encoder's hidden layer, where it is a perceptron.
        codes: numbers that it gives; 5, of images 64, when not given.
        tested: whether test tasks have draws of penalised codes, as many as there are predictions to average, or their means.
        scale: standard deviation of the encoder's weights at first.
        noise: standard deviation of targets given their prediction, kept; learned when not given.
    """

    penalty: Literal["weights", "codes", "decay"] = "weights"
    weight: PositiveNumber | None = None
    hidden: PositiveInt = 100
    codes: PositiveInt | None = None
    tested: Literal["draws", "means"] = "draws"
    scale: PositiveNumber = 0.05
    noise: PositiveNumber | None = None

    def check(self) -> None:
        super().check()
        if self.penalty != CODES and self.tested != type(self).tested:
            raise UserError(f"`tested={self.tested}` is about penalised codes: choose `penalty=codes`, or leave it out")
        check_scale(self)


def check_scale(own: Any) -> None:
    """Refuse a scale of random weights among a method's ``own`` options where its penalty has none.

    Raises:
        UserError: there is one.
    """
    if own.penalty != WEIGHTS and own.scale != type(own).scale:
        raise UserError(f"`scale={own.scale:g}` is about random weights: choose `penalty=weights`, or leave it out")


def variants_of(name: str, own: Any, swept: VariantSettings, steps: int = 0) -> list[Variant]:
    """One for each β above 0 that is swept over, or with the method's ``own`` weight one alone, which has no other; with
    ``steps`` gradient steps of the method of this ``name``."""
    betas = [None] if own.weight is not None else [beta for beta in swept.beta if beta > 0]
    return [Variant(name, "network", None, beta, steps, given=swept.given) for beta in betas]


def beta_of(penalty: str, weight: float | None, setup: Setup, variant: Variant) -> float:
    """β of our objective, a sum over tasks and queries: the ``variant``'s own, or what a ``weight`` of a ``penalty`` beside
    their mean is.

    The rate of weights is counted once for all n tasks of K queries: β = n K weight. That of codes is a sum over queries too,
    and in the paper's a mean: β = weight.
    """
    if variant.beta is not None:
        return variant.beta
    assert weight is not None
    return weight if penalty == CODES else weight * setup.num_tasks * setup.queries


def build_regularised(
    setup: Setup, own: RegularisedOptions, variant: Variant, inner: Callable[[int], Scorer], likelihood: Likelihood
) -> Fit:
    """A model whose scorer reads what an encoder gives, and its guide.

    Sources: Yin et al. 2020, equations 4 and 5; the encoder is their code's.

    Args:
        inner: from the numbers of a code to the scorer of codes.
        likelihood: of its outputs.
    """
    beta = beta_of(own.penalty, own.weight, setup, variant)
    codes = own.codes or (CODES_OF_NUMBERS if setup.problem.image_shape is None else IMAGE_CODES)
    if own.penalty == CODES:
        encoder = GaussianEncoder(encoder_of(setup.problem, own.hidden, 2 * codes), codes)
        coded = CodedModel(encoder, inner(codes), likelihood)
        return Fit(objective_of(coded, CodesGuide(encoder, at_means=own.tested == MEANS), beta), draws=DRAWS)
    scorer = EncodedScorer(encoder_of(setup.problem, own.hidden, codes), inner(codes))
    scale = own.scale if own.penalty == WEIGHTS else None
    return build_random(setup, scorer, likelihood, scale, beta, of_encoder)


def build_random(
    setup: Setup, scorer: Scorer, likelihood: Likelihood, scale: float | None, beta: float, random: Callable[[str], bool]
) -> Fit:
    """A scorer some of whose weights are random, and their guide; β is ``beta``.

    Args:
        likelihood: of the scorer's outputs.
        scale: standard deviation of the weights at first; ``None`` for a point.
        random: which weights, by name.
    """
    model = RegularisedModel(scorer, likelihood, random=random, num_tasks=setup.num_tasks)
    return Fit(objective_of(model, EncoderGuide(model.start, scale), beta), draws=DRAWS)


def gaussian(noise: float | None) -> GaussianLikelihood:
    """Targets with this standard deviation, the ``noise``, or with one that is learned, from 1."""
    return GaussianLikelihood(1.0 if noise is None else noise, learned=noise is None)
