"""Prototypical networks: the nearest class mean, in a space that is trained for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.named import find_predictor
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.base import DescriptionsScorer, MeansScorer


@dataclass(frozen=True, kw_only=True)
class PrototypicalOptions(Options):
    """What may stand behind ``prototypical``.

    Args:
        predictor: the paper's squared Euclidean distance, or cosine; the scale of either is learned.
        descriptions: of classes are what the support holds; they have a map of their own, to prototypes of unit length.
    """

    predictor: Literal["distance", "cosine"] = "distance"
    descriptions: bool = False


OPTIONS = PrototypicalOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One."""
    own = read_given(PrototypicalOptions, swept.given)
    return [Variant("prototypical", own.predictor, None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.base.MeansScorer` and an empty guide: the rule is the nearest class mean's, what is trained
    is the space. With ``descriptions`` :class:`~models.tasks.scorers.base.DescriptionsScorer`. Source: Snell et al. 2017,
    algorithm 1, squared Euclidean distance; section 2.7.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own, predictor = read_given(PrototypicalOptions, variant.given), find_predictor(variant.predictor)()
    if own.descriptions:
        return ConditionalModel(DescriptionsScorer(predictor, means.shape[-1], means.shape[-1])), EmptyGuide()
    return ConditionalModel(MeansScorer(predictor)), EmptyGuide()
