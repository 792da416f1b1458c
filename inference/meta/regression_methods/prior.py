"""The prior: what is predicted before a task's support is seen."""

from __future__ import annotations

from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.laplace import PriorStart
from guides.tasks.rules import GradientStep
from guides.tasks.unrolled import Evidence, UnrolledGuide
from inference.meta.regression_fits import Fit, Setup, objective_of
from inference.meta.regression_methods.conjugate import evidence_model, with_inputs
from inference.meta.regression_tasks import Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from models.tasks.model import EmpiricalBayesModel


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One: its rate is 0."""
    return [Variant("prior", "linear" if problem.is_linear else "network", "gaussian", None, 0, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """q = p_ψ(w) of the model that ``svi_sib`` has."""
    return stay(setup.problem.model(), setup.problem)


def train(setup: Setup, variant: Variant) -> Fit:
    """Prior and noise of linear models, on the evidence of supports."""
    return stay(evidence_model(setup), setup.problem)


def stay(model: EmpiricalBayesModel, problem: Problem) -> Fit:
    """The model with its prior as every task's posterior."""
    rule = GradientStep(0, problem.num_weights, point=True)
    guide = UnrolledGuide(
        model.prior,
        model.predictor,
        PriorStart(model.prior),  # type: ignore[arg-type]
        ExactGradient(model.likelihood),
        rule,
        steps=0,
        on=Evidence.SUPPORT,
    )
    return with_inputs(objective_of(model, guide.double(), 1.0), problem)
