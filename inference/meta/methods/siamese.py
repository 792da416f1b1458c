"""Siamese networks: a network says whether two items are of one class."""

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
from models.tasks.scorers.pairs import PairScorer


@dataclass(frozen=True, kw_only=True)
class SiameseOptions(Options):
    """What may stand behind ``siamese``.

    Args:
        width: of the last layer, whose units are compared one by one.
    """

    width: PositiveInt = 64


OPTIONS = SiameseOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(SiameseOptions, swept.given)
    return [Variant("siamese", "distance", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.pairs.PairScorer` and an empty guide, trained on tasks, not on pairs.

    Source: Koch et al. 2015, section 3.1.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(SiameseOptions, variant.given)
    return ConditionalModel(PairScorer(means.shape[-1], width=own.width)), EmptyGuide()
