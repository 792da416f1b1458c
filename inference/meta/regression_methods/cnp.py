"""Conditional neural processes: one network reads the support, another predicts; nothing is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.errors import UserError
from data.seeding import seeded
from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.regression_fits import IMAGE_CODES, Fit, Setup, encoder_of, meta_train, objective_of
from inference.meta.regression_regularised import WEIGHTS, beta_of, build_random, check_scale, variants_of
from inference.meta.regression_tasks import AMBIGUOUS, MEMORISABLE, POSES, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import GaussianLikelihood, Likelihood
from models.tasks.conditional import ConditionalModel
from models.tasks.regularised import EncodedScorer
from models.tasks.scorers.base import Scorer
from models.tasks.scorers.process import MeanAndScale, NeuralProcessScorer


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(Options):
    """What may stand behind ``cnp``.

    Args:
        width: units of all layers.
        depth: hidden layers of both networks.
        code: numbers that the support is summed up by; as many as there are units when not given.
        noise: standard deviation of targets given their prediction, kept; predicted for each query when not given.
        penalty: none; on all weights (Bayes by backprop); or, decay, on all weights as a point.
        weight: of the penalty beside a mean over training tasks and queries; the run's beta, of a sum, when not given.
        scale: standard deviation of the weights at first.
    """

    width: PositiveInt = 64
    depth: PositiveInt = 2
    code: PositiveInt | None = None
    noise: PositiveNumber | None = None
    penalty: Literal["none", "weights", "decay"] = "none"
    weight: PositiveNumber | None = None
    scale: PositiveNumber = 0.05

    def check(self) -> None:
        super().check()
        check_scale(self)
        if self.penalty == "none" and self.weight is not None:
            raise UserError(f"`weight={self.weight:g}` is a penalty's: choose `penalty=weights` or `decay`, or leave it out")


OPTIONS = ProcessOptions
PROBLEMS = ("linear", "network", "sinusoids", MEMORISABLE, AMBIGUOUS, POSES)


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One, in which nothing is latent; with a penalty one for each β above 0, or of the method's own weight."""
    own = read_given(ProcessOptions, swept.given)
    if own.penalty != "none":
        return variants_of("cnp", own, swept)
    return [Variant("cnp", "network", None, None, 0, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """:class:`~models.tasks.scorers.process.NeuralProcessScorer`, whose spread is a function of query and support, too.

    Sources: Garnelo et al. 2018, equations 1 to 3; trained on the queries' log density given the support. With a penalty on all
    weights: Blundell et al. 2015, section 3.
    """
    own = read_given(ProcessOptions, variant.given)
    with seeded(setup.schedule.seed):
        size = own.code or own.width
        scorer = scorer_of(setup.problem, width=own.width, code=size, depth=own.depth)
    likelihood = likelihood_of(own.noise)
    if own.penalty == "none":
        return Fit(objective_of(ConditionalModel(scorer, likelihood), EmptyGuide(), 1.0))
    scale, beta = own.scale if own.penalty == WEIGHTS else None, beta_of(own.penalty, own.weight, setup, variant)
    return build_random(setup, scorer, likelihood, scale, beta, lambda name: True)


def scorer_of(problem: Problem, **sizes: int) -> Scorer:
    """A process of these ``sizes`` on inputs, or on what convolutions make of images."""
    if problem.image_shape is None:
        return NeuralProcessScorer(problem.num_inputs, **sizes)
    return EncodedScorer(encoder_of(problem, 0, IMAGE_CODES), NeuralProcessScorer(IMAGE_CODES, **sizes))


def likelihood_of(noise: float | None) -> Likelihood:
    """Targets whose spread is predicted for each query, or is this ``noise``, of which two outputs the second is then idle."""
    return MeanAndScale() if noise is None else GaussianLikelihood(noise, learned=False)


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return meta_train(build(setup, variant), setup)
