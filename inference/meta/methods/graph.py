"""Graph networks: labels spread from support items to a query along edges that a network draws."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from data.semi_supervised import Unlabelled
from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveInt
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.graph import GraphScorer


@dataclass(frozen=True, kw_only=True)
class GraphOptions(Options):
    """What may stand behind ``graph``.

    Args:
        width: units of the network that draws edges.
        layers: of the graph.
    """

    width: PositiveInt = 32
    layers: PositiveInt = 2


OPTIONS = GraphOptions
FIXED_WAY = True
UNLABELLED = Unlabelled.SUPPORT


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(GraphOptions, swept.given)
    return [Variant("graph", "distance", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.graph.GraphScorer` and an empty guide, for tasks of one number of classes.

    Source: Garcia and Bruna 2018, equations 1, 2 and 4.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(GraphOptions, variant.given)
    scorer = GraphScorer(means.shape[-1], settings.way, width=own.width, layers=own.layers)
    return ConditionalModel(scorer), EmptyGuide()
