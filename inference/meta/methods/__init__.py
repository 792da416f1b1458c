"""Methods of meta-learning by name.

A method says which variants a run trains and builds a model and a guide for each; both are programs over an
:class:`~data.episodes.Episode`, and the model has the observed site ``labels``. Everything else (training, evaluation,
posterior, records, pictures, ``predict``) works from that site. To add one: a file here with ``variants`` and ``build``, and a
line in :data:`FILES`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from torch import Tensor, nn

from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant


class Method(NamedTuple):
    """How a method enters a run.

    Attributes:
        variants: from what a run sweeps over to what it trains.
        build: from settings, a variant and the base classes' mean features ``[base classes, D]`` to model and guide.
    """

    variants: Callable[[VariantSettings], list[Variant]]
    build: Callable[[GuideSettings, Variant, Tensor], tuple[nn.Module, nn.Module]]


FILES = {
    "sib": "sib",
    "nearest-mean": "nearest_mean",
    "gaussian-classes": "gaussian_classes",
}
"""Names of ``--methods``, and the files of this folder that hold them."""

MODULES = {name: import_module(f"{__name__}.{file}") for name, file in FILES.items()}
METHODS = {name: Method(module.variants, module.build) for name, module in MODULES.items()}
"""Methods by the names of ``--methods``."""
