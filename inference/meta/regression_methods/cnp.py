"""Conditional neural processes: one network reads the support, another predicts; nothing is adapted."""

from __future__ import annotations

from dataclasses import dataclass

from data.seeding import seeded
from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.regression_fits import Fit, Setup, meta_train, num_inputs, objective_of
from inference.meta.regression_tasks import AMBIGUOUS, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.process import MeanAndScale, NeuralProcessScorer

PROBLEMS = ("linear", "network", "sinusoids", AMBIGUOUS)


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(Options):
    """What may stand behind ``cnp``.

    Args:
        width: units of all layers, and numbers of the code.
        depth: hidden layers of both networks.
    """

    width: PositiveInt = 64
    depth: PositiveInt = 2


OPTIONS = ProcessOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One; nothing is latent."""
    read_given(ProcessOptions, swept.given)
    return [Variant("cnp", "network", None, None, 0, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """:class:`~models.tasks.scorers.process.NeuralProcessScorer`, whose spread is a function of query and support, too.

    Source: Garnelo et al. 2018, equations 1 to 3; trained on the queries' log density given the support.
    """
    own = read_given(ProcessOptions, variant.given)
    with seeded(setup.schedule.seed):
        scorer = NeuralProcessScorer(num_inputs(setup.problem), width=own.width, code=own.width, depth=own.depth)
    return Fit(objective_of(ConditionalModel(scorer, MeanAndScale()), EmptyGuide(), 1.0))


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return meta_train(build(setup, variant), setup)
