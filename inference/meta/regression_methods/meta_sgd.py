"""Meta-SGD: MAML with a step size of each weight, learned."""

from __future__ import annotations

from dataclasses import dataclass

from guides.tasks.families import Family
from inference.meta.choices import read_given
from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_methods import maml
from inference.meta.regression_tasks import AMBIGUOUS, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant

PROBLEMS = ("linear", "network", "sinusoids", AMBIGUOUS)


@dataclass(frozen=True, kw_only=True)
class MetaSgdOptions(maml.MamlOptions):
    """What may stand behind ``meta-sgd``: as behind ``maml``.

    Args:
        per_feature: learn a size for each weight, too; without it there is one for each step.
        learned: sizes are.
    """

    learned: bool = True
    per_feature: bool = True


OPTIONS = MetaSgdOptions


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One, with K steps: a point for each task."""
    own = read_given(MetaSgdOptions, swept.given)
    name = "linear" if problem.name == "linear" else "network"
    return [Variant("meta-sgd", name, Family.DELTA.value, None, own.test_steps or own.steps, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """As :func:`inference.meta.regression_methods.maml.build` with an α of each step and weight, learned on the log scale.

    Source: Li et al. 2017, "Meta-SGD: learning to learn quickly for few-shot learning", algorithm 1, there with one step.
    """
    return maml.build_steps(setup, read_given(MetaSgdOptions, variant.given))


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return maml.train_steps(build(setup, variant), setup, read_given(MetaSgdOptions, variant.given))
