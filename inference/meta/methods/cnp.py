"""Conditional neural processes on classes: one network reads the support, another scores a class; nothing is adapted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.process import ClassProcessScorer


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(Options):
    """What may stand behind ``cnp``.

    Args:
        width: units of all layers, and numbers of each code.
        depth: hidden layers of both networks.
    """

    width: PositiveInt = 128
    depth: PositiveInt = 1


OPTIONS = ProcessOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(ProcessOptions, swept.given)
    return [Variant("cnp", "distance", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.process.ClassProcessScorer` and an empty guide. Source: Garnelo et al. 2018, equations 1 to
    3.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(ProcessOptions, variant.given)
    scorer = ClassProcessScorer(means.shape[-1], width=own.width, code=own.width, depth=own.depth)
    return ConditionalModel(scorer), EmptyGuide()
