"""Relation networks: a network says how well a query goes with a class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.relation import RelationScorer


@dataclass(frozen=True, kw_only=True)
class RelationOptions(Options):
    """What may stand behind ``relation``.

    Args:
        summed: compare with the sum of a class's items, as the paper does, and not with their mean.
    """

    summed: bool = False


OPTIONS = RelationOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(RelationOptions, swept.given)
    return [Variant("relation", "distance", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.relation.RelationScorer` and an empty guide: on vectors in place of maps, and by
    cross-entropy in place of squared errors. Source: Sung et al. 2018, equation 1.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(RelationOptions, variant.given)
    return ConditionalModel(RelationScorer(means.shape[-1], summed=own.summed)), EmptyGuide()
