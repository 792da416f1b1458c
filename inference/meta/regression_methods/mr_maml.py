"""MR-MAML: MAML on codes of the inputs, which are costly: tasks that can be learned by heart are adapted to instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from data.seeding import seeded
from guides.tasks.adapted import AdaptedScorer
from inference.meta.choices import read_given
from inference.meta.regression_fits import WIDTH, Fit, Setup, initial_weights, meta_train
from inference.meta.regression_methods.maml import SIZES, MamlOptions, descent
from inference.meta.regression_regularised import RegularisedOptions, build_regularised, gaussian, variants_of
from inference.meta.regression_tasks import MEMORISABLE, POSES, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.values import PositiveInt
from models.tasks.predictors import PerceptronPredictor
from models.tasks.scorers.base import Scorer


@dataclass(frozen=True, kw_only=True)
class MrMamlOptions(MamlOptions, RegularisedOptions):
    """What may stand behind ``mr-maml``: as behind ``maml``, with the steps of the authors' code, and

    Args:
        steps: K, gradient steps on the support.
        test_steps: of test tasks.
        tested: whether test tasks have draws of penalised codes, as many as there are predictions to average, or, as in the
            authors' code, their means.
        penalty: on the encoder's weights (their W), its codes (their A), or, decay, the weights as a point.
    """

    steps: PositiveInt = 1
    test_steps: PositiveInt | None = 100
    tested: Literal["draws", "means"] = "means"


OPTIONS = MrMamlOptions
PROBLEMS = (MEMORISABLE, POSES)


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One for each β above 0, or of the method's own weight."""
    own = read_given(MrMamlOptions, swept.given)
    return variants_of("mr-maml", own, swept, own.test_steps or own.steps)


def build(setup: Setup, variant: Variant) -> Fit:
    """MAML of a 40-40 perceptron on codes. Source: Yin et al. 2020, equations 4 and 5, with the networks of their code.

    Steps on the support see its own codes, or the same encoder.
    """
    own = read_given(MrMamlOptions, variant.given)

    def inner(codes: int) -> Scorer:
        predictor = PerceptronPredictor((codes, WIDTH, WIDTH, 1), torch.relu)
        return AdaptedScorer(descent(own, predictor, initial_weights(predictor, codes), SIZES[setup.problem.name]))

    with seeded(setup.schedule.seed):
        return build_regularised(setup, own, variant, inner, gaussian(own.noise))


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries, with the K steps of training, however many are tested."""
    fit, own = build(setup, variant), read_given(MrMamlOptions, variant.given)
    scorer = fit.model.scorer
    guide = (scorer if isinstance(scorer, AdaptedScorer) else scorer.scorer).guide
    tested, guide.steps = guide.steps, own.steps
    meta_train(fit, setup)
    guide.steps = tested
    return fit
