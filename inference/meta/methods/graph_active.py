"""Graph networks that ask for a label: which of the unlabelled items should be known is an attention of their own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from data.semi_supervised import Unlabelled
from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.methods.graph import GraphOptions
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.graph import AskingGraphScorer


@dataclass(frozen=True, kw_only=True)
class GraphActiveOptions(GraphOptions):
    """What may stand behind ``graph-active``.

    Args:
        hard: count the label that is asked for in full, and not times the attention it has.
        random_training: ask for any item in training.
    """

    hard: bool = True
    random_training: bool = False


OPTIONS = GraphActiveOptions
FIXED_WAY = True
UNLABELLED = Unlabelled.SUPPORT
ASKS = True


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(GraphActiveOptions, swept.given)
    return [Variant("graph-active", "distance", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.graph.AskingGraphScorer` and an empty guide, for tasks of one number of classes.

    Source: Garcia and Bruna 2018, section 5.2.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(GraphActiveOptions, variant.given)
    features, way = means.shape[-1], settings.way
    scorer = AskingGraphScorer(
        features, way, width=own.width, layers=own.layers, hard=own.hard, random_training=own.random_training
    )
    return ConditionalModel(scorer), EmptyGuide()
