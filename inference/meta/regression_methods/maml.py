"""MAML: a few gradient steps of all weights on the support, from a start that is learned for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.seeding import seeded
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
from inference.meta.choices import read_given
from inference.meta.regression_fits import Fit, Setup, initial_weights, meta_train, objective_of, predictor_of
from inference.meta.regression_tasks import AMBIGUOUS, MEMORISABLE, POSES, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor, Predictor
from models.tasks.priors import GaussianPrior

SIZES = {"linear": 0.1, "network": 0.03, "sinusoids": 0.01, MEMORISABLE: 0.01, AMBIGUOUS: 0.01, POSES: 0.01}
"""Of steps on the mean squared error."""
SQUARED_ERROR = 0.5**0.5
"""The noise with which −log p is the squared error, up to a constant: so steps have the size of those of the paper, whatever
noise the predictions have."""


@dataclass(frozen=True, kw_only=True)
class MamlOptions(Options):
    """What may stand behind ``maml``.

    Args:
        steps: K, gradient steps on the support.
        test_steps: of test tasks; as many as were trained when not given.
        size: of the steps, where training starts; 0.01 on sinusoids, as in the papers, and of linear and network what is well
            within what their tasks bear when not given.
        learned: learn a size for each step, or keep the one there is.
        per_feature: learn one for each weight too, as Meta-SGD does.
        first_order: no second derivatives.
    """

    steps: PositiveInt = 5
    test_steps: PositiveInt | None = None
    size: PositiveNumber | None = None
    learned: bool = False
    per_feature: bool = False
    first_order: bool = False


OPTIONS = MamlOptions
PROBLEMS = tuple(SIZES)


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One, with K steps: a point for each task."""
    own = read_given(MamlOptions, swept.given)
    name = "linear" if problem.name == "linear" else "network"
    return [Variant("maml", name, Family.DELTA.value, None, own.test_steps or own.steps, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """φ ← φ − α ∇_φ mean_{i∈support} (y_i − f(x_i; φ))², K times; the queries are N(f(x; φ), σ²) with σ learned.

    Sources: Finn et al. 2017, algorithm 2 with equation 2; Li et al. 2017 (Meta-SGD) for a learned α of each weight.
    """
    return build_steps(setup, read_given(MamlOptions, variant.given))


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries, with the K steps of training, however many are tested."""
    return train_steps(build(setup, variant), setup, read_given(MamlOptions, variant.given))


def build_steps(setup: Setup, own: MamlOptions, space: nn.Module | None = None, num_features: int = 0) -> Fit:
    """:func:`build` for a method's ``own`` options; the guide takes the steps that are tested.

    Args:
        space: what inputs go through first, to so many ``num_features``: what is adapted is then linear in them.
    """
    with seeded(setup.schedule.seed):
        predictor = LinearPredictor(1.0, learned=False) if space is not None else predictor_of(setup.problem)
        weights = initial_weights(predictor, num_features or setup.problem.num_inputs)
    guide = descent(own, predictor, weights, SIZES[setup.problem.name])
    return Fit(objective_of(EmpiricalBayesModel(guide.prior, predictor, GaussianLikelihood(1.0)), guide, 0.0), space)


def descent(own: MamlOptions, predictor: Predictor, weights: Tensor, usual: float) -> UnrolledGuide:
    """A method's ``own`` steps on the support's mean squared error, as many as are tested, from ``weights`` ``[P]``.

    Args:
        predictor: of the weights that are adapted.
        usual: size of the steps, where no other is given.
    """
    size, tested = len(weights), own.test_steps or own.steps
    learned, step = own.learned or own.per_feature, own.size or usual
    sizes = own.steps if learned else max(own.steps, tested)  # none is learned of steps that are not trained
    rule = GradientStep(sizes, size, size=step, learned=learned, per_feature=own.per_feature, point=True)
    prior = GaussianPrior(torch.zeros(size), torch.ones(size), learned=False)  # of a point it says nothing
    guide = UnrolledGuide(
        prior,
        predictor,
        LearnedStart(weights[None]),
        ExactGradient(GaussianLikelihood(SQUARED_ERROR, learned=False)),
        rule,
        steps=tested,
        on=Evidence.SUPPORT,
        beta=0.0,
        family=Family.DELTA,
        first_order=own.first_order,
        reduction=Reduction.MEAN,
    )
    guide.start.log_scale.requires_grad_(False)  # of a point
    return guide


def train_steps(fit: Fit, setup: Setup, own: MamlOptions) -> Fit:
    """Train a ``fit`` with K steps, and read it after as many as are tested; returns it."""
    tested, fit.guide.steps = fit.guide.steps, own.steps
    meta_train(fit, setup)
    fit.guide.steps = tested
    return fit
