"""Variational information-bottleneck learning for Pyro: distortion + β · rate.

The front door: ``from sibyl import SIB, BNN, VID``. What it offers is loaded when first asked for, so ``import sibyl`` is
quick. The parts stand in ``sibyl.data``, ``sibyl.models``, ``sibyl.guides`` and ``sibyl.inference``. In a checkout these are
the folders ``data``, ``models`` ... of its root, and ``sibyl.models.plates`` is the same module as ``models.plates``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sibyl._checkout import AliasFinder
from sibyl._version import __version__

if TYPE_CHECKING:
    from data.catalogue import load_data, load_supervised
    from data.episodes import Episode, EpisodeSampler, TaskSpec
    from data.errors import UserError
    from data.items import ImageSplits, LabelledItems, SupervisedData
    from inference.bnn.bnn import BNN
    from inference.elbo import RateDistortionELBO
    from inference.meta.fitting import Learner
    from inference.meta.sib import SIB
    from inference.vid.vid import VID

__all__ = [
    "BNN",
    "SIB",
    "VID",
    "Episode",
    "EpisodeSampler",
    "ImageSplits",
    "LabelledItems",
    "Learner",
    "RateDistortionELBO",
    "SupervisedData",
    "TaskSpec",
    "UserError",
    "__version__",
    "load_data",
    "load_supervised",
]

_HOME = {
    "BNN": "inference.bnn.bnn",
    "Episode": "data.episodes",
    "EpisodeSampler": "data.episodes",
    "ImageSplits": "data.items",
    "LabelledItems": "data.items",
    "Learner": "inference.meta.fitting",
    "RateDistortionELBO": "inference.elbo",
    "SIB": "inference.meta.sib",
    "SupervisedData": "data.items",
    "TaskSpec": "data.episodes",
    "UserError": "data.errors",
    "VID": "inference.vid.vid",
    "load_data": "data.catalogue",
    "load_supervised": "data.catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sibyl' has no attribute {name!r}")
    value = getattr(import_module(f"sibyl.{_HOME[name]}"), name)
    globals()[name] = value  # not asked for again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not (Path(__file__).parent / "data").is_dir():  # a wheel has its rooms here
    sys.meta_path.insert(0, AliasFinder())
