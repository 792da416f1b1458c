"""Methods of meta-learning by name.

A method says which variants a run trains and builds a model and a guide for each; both are programs over an
:class:`~data.episodes.Episode`, and the model has the observed site ``labels``. Everything else (training, evaluation,
posterior, records, pictures, ``predict``) works from that site. To add one: a file here with ``variants`` and ``build``, and a
line in :data:`FILES`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor, nn

from data.semi_supervised import Unlabelled
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options


class Method(NamedTuple):
    """How a method enters a run.

    Attributes:
        variants: from what a run sweeps over to what it trains.
        build: from settings, a variant and the base classes' mean features ``[base classes, D]`` to model and guide.
        options: what may stand behind its name, as in ``anil:steps=10``, see :mod:`inference.meta.choices`.
        fixed_way: whether it takes tasks of one number of classes alone.
        unlabelled: what it makes of support items without a label.
        asks: whether it asks for labels of support items itself, see :func:`~data.semi_supervised.sealed`.
        earlier: weight in the training loss of each step before the last, whose weight is 1.
    """

    variants: Callable[[VariantSettings], list[Variant]]
    build: Callable[[GuideSettings, Variant, Tensor], tuple[nn.Module, nn.Module]]
    options: type[Options] = Options
    earlier: float = MetaSchedule.earlier
    fixed_way: bool = False
    unlabelled: Unlabelled = Unlabelled.LEFT_OUT
    asks: bool = False


FILES = {
    "sib": "sib",
    "nearest-mean": "nearest_mean",
    "gaussian-classes": "gaussian_classes",
    "prototypical": "prototypical",
    "matching": "matching",
    "relation": "relation",
    "siamese": "siamese",
    "cnp": "cnp",
    "graph": "graph",
    "graph-active": "graph_active",
    "tpn": "propagation",
    "r2d2": "r2d2",
    "anil": "anil",
    "nil": "nil",
    "llama": "llama",
    "bmaml": "bmaml",
    "maml": "maml",
    "mr-maml": "mr_maml",
    "platipus": "platipus",
    "fine-tuning": "fine_tuning",
}
"""Methods by name, and the files of this folder that hold them."""

MODULES = {name: import_module(f"{__name__}.{file}") for name, file in FILES.items()}


def method_of(module: Any) -> Method:
    """What a file of this folder, a ``module``, has of a method."""
    beside = {field: getattr(module, name) for field, name in OWN.items() if hasattr(module, name)}
    return Method(module.variants, module.build, **beside)


OWN = {
    "options": "OPTIONS",
    "earlier": "EARLIER",
    "fixed_way": "FIXED_WAY",
    "unlabelled": "UNLABELLED",
    "asks": "ASKS",
}
"""What a method's file may have beside its two functions, and what it is called there."""

METHODS = {name: method_of(module) for name, module in MODULES.items()}
"""Methods by the names of ``--methods``."""
