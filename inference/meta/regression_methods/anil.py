"""ANIL: MAML of the last layer alone; the layers below are the same for all tasks."""

from __future__ import annotations

from dataclasses import dataclass

from data.seeding import seeded
from guides.tasks.families import Family
from inference.meta.choices import read_given
from inference.meta.regression_fits import Fit, Setup, Trunk
from inference.meta.regression_methods import maml
from inference.meta.regression_tasks import AMBIGUOUS, Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant


@dataclass(frozen=True, kw_only=True)
class AnilOptions(maml.MamlOptions):
    """What may stand behind ``anil``: as behind ``maml``."""


OPTIONS = AnilOptions
PROBLEMS = ("network", "sinusoids", AMBIGUOUS)


def variants(swept: VariantSettings, problem: Problem) -> list[Variant]:
    """One, with K steps: a point for each task."""
    own = read_given(AnilOptions, swept.given)
    return [Variant("anil", "linear", Family.DELTA.value, None, own.test_steps or own.steps, given=swept.given)]


def build(setup: Setup, variant: Variant) -> Fit:
    """As :func:`inference.meta.regression_methods.maml.build`, with φ the last layer. Source: Raghu et al. 2020, section 4."""
    with seeded(setup.schedule.seed):
        trunk = Trunk(setup.problem)
    return maml.build_steps(setup, read_given(AnilOptions, variant.given), trunk, trunk.num_features)


def train(setup: Setup, variant: Variant) -> Fit:
    """On the queries."""
    return maml.train_steps(build(setup, variant), setup, read_given(AnilOptions, variant.given))
