"""The exact posterior of the linear model that ``svi_sib`` learns: on ``linear``, and on sinusoids in radial basis features."""

from __future__ import annotations

from dataclasses import replace

from inference.meta.regression_fits import LINEAR_SPEED, Bumps, Fit, Setup
from inference.meta.regression_guides import CONJUGATE, FASTER, fit_evidence, tempered
from inference.meta.regression_tasks import Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from models.tasks.model import EmpiricalBayesModel

PROBLEMS = ("linear", "sinusoids")


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0."""
    return [Variant(CONJUGATE, "linear", "matrix", beta, 0, given=swept.given) for beta in swept.beta if beta > 0]


def build(setup: Setup, variant: Variant) -> Fit:
    """Source: Bishop 2006, equations 3.50 and 3.51; prior and noise by type-II maximum likelihood."""
    assert variant.beta is not None
    return with_inputs(tempered(setup.problem.model(), variant.beta), setup.problem)


def train(setup: Setup, variant: Variant) -> Fit:
    """On the evidence of supports."""
    assert variant.beta is not None
    return with_inputs(tempered(evidence_model(setup), variant.beta), setup.problem)


def evidence_model(setup: Setup) -> EmpiricalBayesModel:
    """The model of ``svi_sib``: prior and noise of linear ones are learned by the evidence of supports; of the network they are
    known."""
    model = setup.problem.model()
    if setup.problem.is_linear:
        schedule = replace(setup.schedule, learning_rate=LINEAR_SPEED / FASTER * setup.schedule.learning_rate)
        fit_evidence(model, setup.problem, setup.queries, schedule)
    return model


def with_inputs(objective, problem: Problem) -> Fit:
    """The ``objective`` on the problem's inputs, sinusoids in radial basis features."""
    return Fit(objective, Bumps() if problem.name == "sinusoids" else None)
