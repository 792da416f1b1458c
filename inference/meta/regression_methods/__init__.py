"""Meta-learners of regression tasks by name.

A method says which variants a run trains, builds a model and a guide for each, and how they are trained; both are programs over
an :class:`~data.episodes.Episode`, and the model has the observed site ``labels``. To add one: a file here with ``variants``
and ``train``, which builds what it trains by ``build``, and a line in :data:`FILES`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_tasks import Problem
from inference.meta.settings import VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options


class RegressionMethod(NamedTuple):
    """How a method enters a run on regression tasks.

    Attributes:
        variants: from what a run sweeps over, and the problem, to what it trains.
        build: what a variant is before training.
        train: the same after it.
        options: what may stand behind its name, see :mod:`inference.meta.choices`.
        problems: that it can be run on.
    """

    variants: Callable[[VariantSettings, Problem], list[Variant]]
    build: Callable[[Setup, Variant], Fit]
    train: Callable[[Setup, Variant], Fit]
    options: type[Options] = Options
    problems: tuple[str, ...] = ("linear", "network", "sinusoids")


FILES = {
    "prior": "prior",
    "fine-tuning": "fine_tuning",
    "maml": "maml",
    "platipus": "platipus",
    "meta-sgd": "meta_sgd",
    "anil": "anil",
    "llama": "llama",
    "bmaml": "bmaml",
    "cnp": "cnp",
    "mr-maml": "mr_maml",
    "mr-cnp": "mr_cnp",
    "ridge": "ridge",
    "conjugate": "conjugate",
    "sib": "sib",
}
"""Methods by name, and the files of this folder that hold them."""


def method_of(module: Any) -> RegressionMethod:
    """What a file of this folder, a ``module``, has of a method."""
    beside = {field: getattr(module, name) for field, name in OWN.items() if hasattr(module, name)}
    return RegressionMethod(module.variants, module.build, module.train, **beside)


OWN = {"options": "OPTIONS", "problems": "PROBLEMS"}
"""What a method's file may have beside its three functions, and what it is called there."""

REGRESSION_METHODS = {name: method_of(import_module(f"{__name__}.{file}")) for name, file in FILES.items()}
"""Methods by the names of ``--methods``."""
