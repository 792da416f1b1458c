"""PLATIPUS and MAML with noise: weights drawn around a prior that has seen the support, then a few gradient steps on it."""

from __future__ import annotations

from dataclasses import dataclass

from data.seeding import seeded
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.starts import LearnedStart
from inference.meta.choices import read_given
from inference.meta.platipus import build_platipus
from inference.meta.regression_fits import Fit, Setup, initial_weights, meta_train, objective_of, predictor_of
from inference.meta.regression_methods.maml import SIZES, SQUARED_ERROR
from inference.meta.regression_tasks import AMBIGUOUS, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import GaussianLikelihood

PROBLEMS = ("linear", "network", "sinusoids", AMBIGUOUS)


@dataclass(frozen=True, kw_only=True)
class PlatipusOptions(Options):
    """What may stand behind ``platipus``.

    Args:
        steps: K, gradient steps on the support from the weights that were drawn.
        size: α, of these steps, kept; that of maml when not given.
        prior_size: γ, of the steps of prior and posterior, where training starts; size when not given.
        scale: standard deviation of prior and posterior, where training starts; that of noise_only stays.
        noise_only: MAML with noise: one Gaussian for all tasks is drawn from, and there is no posterior.
        first_order: no second derivatives.
    """

    steps: PositiveInt = 5
    size: PositiveNumber | None = None
    prior_size: PositiveNumber | None = None
    scale: PositiveNumber = 0.05
    noise_only: bool = False
    first_order: bool = False


OPTIONS = PlatipusOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0; with noise alone one, which has no rate."""
    own, name = read_given(PlatipusOptions, swept.given), "linear" if problem.name == "linear" else "network"
    weights = (None,) if own.noise_only else tuple(beta for beta in swept.beta if beta > 0)
    return [Variant("platipus", name, Family.GAUSSIAN.value, beta, own.steps, given=swept.given) for beta in weights]


def build(setup: Setup, variant: Variant) -> Fit:
    """:func:`~inference.meta.platipus.build_platipus` with L the mean squared error; the queries are N(f(x; φ), σ²) with σ
    learned.

    Source: Finn, Xu and Levine 2018, algorithms 1 and 2.
    """
    own = read_given(PlatipusOptions, variant.given)
    with seeded(setup.schedule.seed):
        predictor = predictor_of(setup.problem)
        weights = initial_weights(predictor, setup.problem.num_weights)
    size = own.size or SIZES[setup.problem.name]
    model, guide = build_platipus(
        predictor,
        LearnedStart(weights[None]),
        ExactGradient(GaussianLikelihood(SQUARED_ERROR, learned=False)),
        GaussianLikelihood(1.0),
        steps=own.steps,
        size=size,
        prior_size=own.prior_size or size,
        scale=own.scale,
        noise_only=own.noise_only,
        first_order=own.first_order,
    )
    return Fit(objective_of(model, guide, variant.beta or 0.0))


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return meta_train(build(setup, variant), setup)
