"""SIB on regression: a start from the support by ridge regression, then K steps of synthetic gradients on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from data.seeding import seeded
from inference.meta.choices import read_given
from inference.meta.regression_fits import LINEAR_SPEED, Fit, Setup
from inference.meta.regression_guides import FASTER, build_guide, fit_guide, training_objective
from inference.meta.regression_methods.conjugate import evidence_model, with_inputs
from inference.meta.regression_tasks import Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import NonNegativeInt
from models.tasks.model import EmpiricalBayesModel


@dataclass(frozen=True, kw_only=True)
class SibOwnOptions(Options):
    """What may stand behind ``sib``.

    Args:
        steps: K.
        gradient: equivariant (the network of residuals), exact, or mlp (the paper's, on the unlabelled queries).
        initialisation: support (ridge regression, of the linearised network) or learned.
    """

    steps: NonNegativeInt = 3
    gradient: Literal["equivariant", "exact", "mlp"] = "equivariant"
    initialisation: Literal["support", "learned"] = "support"


OPTIONS = SibOwnOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0."""
    own, name = read_given(SibOwnOptions, swept.given), "linear" if problem.is_linear else "network"
    return [Variant("sib", name, "gaussian", beta, own.steps, given=swept.given) for beta in swept.beta if beta > 0]


def build(setup: Setup, variant: Variant) -> Fit:
    """The guide of ``svi_sib`` on its model, see :func:`inference.meta.regression_guides.build_guide`.

    Source: Hu et al. 2019, equation 9.
    """
    return guided(setup, variant, setup.problem.model())


def train(setup: Setup, variant: Variant) -> Fit:
    """The model on the evidence of supports where it is not known, then the guide on distortion + β · rate of supports."""
    fit = guided(setup, variant, evidence_model(setup))
    schedule = replace(setup.schedule, learning_rate=LINEAR_SPEED / FASTER * setup.schedule.learning_rate)
    fit_guide(fit.objective, setup.problem, setup.queries, schedule)
    return fit


def guided(setup: Setup, variant: Variant, model: EmpiricalBayesModel) -> Fit:
    """The ``model`` with its guide as it starts."""
    own = read_given(SibOwnOptions, variant.given)
    assert variant.beta is not None
    chosen = replace(setup.guide, gradient=own.gradient, initialisation=own.initialisation, seed=setup.schedule.seed)
    with seeded(setup.schedule.seed):
        guide = build_guide(setup.problem, model, chosen, variant)
    return with_inputs(training_objective(variant.beta, model, guide), setup.problem)
