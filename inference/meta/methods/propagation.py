"""Transductive propagation networks: labels spread over a graph of support and queries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from data.errors import UserError
from data.semi_supervised import Unlabelled
from guides.empty import EmptyGuide
from inference.meta.choices import read_given
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.variants import Variant
from inference.runs.options import Options
from inference.runs.values import PositiveNumber, TwoOrMore
from models.tasks.conditional import ConditionalModel
from models.tasks.scorers.propagation import PropagationScorer


@dataclass(frozen=True, kw_only=True)
class PropagationOptions(Options):
    """What may stand behind ``tpn``.

    Args:
        alpha: α, below 1: how far labels spread.
        neighbours: edges of each node that are kept.
    """

    alpha: PositiveNumber = 0.99
    neighbours: TwoOrMore = 20

    def check(self) -> None:
        if self.alpha >= 1:
            raise UserError(f"`alpha={self.alpha:g}` must be below 1: labels would spread without end")


OPTIONS = PropagationOptions
UNLABELLED = Unlabelled.SUPPORT


def variants(swept: VariantSettings) -> list[Variant]:
    """One; nothing is latent."""
    read_given(PropagationOptions, swept.given)
    return [Variant("tpn", "distance", None, None, 0, given=swept.given)]


def build(settings: GuideSettings, variant: Variant, means: Tensor) -> tuple[nn.Module, nn.Module]:
    """:class:`~models.tasks.scorers.propagation.PropagationScorer` and an empty guide. Source: Liu et al. 2019, equation 4.

    Args:
        means: of the base classes, ``[classes, D]``: they tell D.
    """
    own = read_given(PropagationOptions, variant.given)
    scorer = PropagationScorer(means.shape[-1], alpha=own.alpha, neighbours=own.neighbours)
    return ConditionalModel(scorer), EmptyGuide()
