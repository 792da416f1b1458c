"""Matching networks: a query has the labels of the support items that it attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt, PositiveNumber
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.attention import AttentionScorer, FullContextScorer


@dataclass(frozen=True, kw_only=True)
class MatchingOptions(Options):
    """What may stand behind ``matching``.

    Args:
        scale: of the cosines, where training starts; learned.
        full_context: embed items in the context of the whole support, by LSTMs over it: predictions then depend on its order.
        reads: passes of the query's LSTM over the support, with full_context.
    """

    scale: PositiveNumber = 10.0
    full_context: bool = False
    reads: PositiveInt = 2


OPTIONS = MatchingOptions


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(MatchingOptions, swept.given)
    return [Variant("matching", "cosine", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.attention.AttentionScorer` and an empty guide. Source: Vinyals et al. 2016, equation 1.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(MatchingOptions, variant.given)
    if own.full_context:
        return ConditionalModel(FullContextScorer(means.shape[-1], steps=own.reads, scale=own.scale)), EmptyGuide()
    return ConditionalModel(AttentionScorer(own.scale)), EmptyGuide()
