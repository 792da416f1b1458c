"""MR-CNP: a conditional neural process on codes of the inputs, which are costly."""

from __future__ import annotations

from dataclasses import dataclass

from data.seeding import seeded
from inference.meta.choices import read_given
from inference.meta.regression_fits import Fit, Setup, meta_train
from inference.meta.regression_methods.cnp import likelihood_of
from inference.meta.regression_regularised import RegularisedOptions, build_regularised, variants_of
from inference.meta.regression_tasks import MEMORISABLE, POSES, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.values import PositiveInt
from models.tasks.scorers.base import Scorer
from models.tasks.scorers.process import NeuralProcessScorer


@dataclass(frozen=True, kw_only=True)
class MrProcessOptions(RegularisedOptions):
    """What may stand behind ``mr-cnp``.

    Args:
        width: units of all layers but the encoder's.
        depth: hidden layers of both networks.
        code: numbers that the support is summed up by.
        noise: standard deviation of targets given their prediction, kept; predicted for each query when not given.
    """

    width: PositiveInt = 100
    depth: PositiveInt = 2
    code: PositiveInt = 5


OPTIONS = MrProcessOptions
PROBLEMS = (MEMORISABLE, POSES)


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0, or of the method's own weight."""
    return variants_of("mr-cnp", read_given(MrProcessOptions, swept.given), swept)


def build(setup: Setup, variant: Variant) -> Fit:
    """:class:`~models.tasks.scorers.process.NeuralProcessScorer` of codes, of the support's points and of the query.

    Source: Yin et al. 2020, equations 4 and 5, with the networks of their code.
    """
    own = read_given(MrProcessOptions, variant.given)

    def inner(codes: int) -> Scorer:
        return NeuralProcessScorer(codes, width=own.width, code=own.code, depth=own.depth)

    with seeded(setup.schedule.seed):
        return build_regularised(setup, own, variant, inner, likelihood_of(own.noise))


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return meta_train(build(setup, variant), setup)
