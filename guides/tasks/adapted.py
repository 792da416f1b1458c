"""Gradient steps on the support as a rule p(y given x, support): for programs whose latent sites are others."""

from __future__ import annotations

from torch import Tensor

from guides.tasks.families import Family
from guides.tasks.unrolled import Evidence, UnrolledGuide
from models.tasks.scorers.base import Scorer


class AdaptedScorer(Scorer):
    """ŷ(x, w_K), with w_K the point that K unrolled steps on the support end at.

    What an :class:`~guides.tasks.unrolled.UnrolledGuide` of points says, with nothing latent: of a point there is no rate.
    Source: Finn et al. 2017, algorithm 2.

    Args:
        guide: the steps, on the support; a point for each task.
        way: the only number of classes that the guide takes; ``None`` for any, and in regression.

    Raises:
        ValueError: a guide of another family, or of steps on the queries.
    """

    def __init__(self, guide: UnrolledGuide, *, way: int | None = None) -> None:
        super().__init__()
        if guide.family is not Family.DELTA or guide.on is not Evidence.SUPPORT:
            raise ValueError("a scorer adapts points on the support: give a guide of the delta family on the support")
        self.guide, self.way = guide, way

    @property
    def num_adapted(self) -> int:
        """Numbers that are adapted for each task."""
        return self.guide.predictor.rows(self.way or 1) * self.guide.prior.loc.numel()

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> Tensor:
        """``[tasks, support, *item], [tasks, support], [tasks, query, *item] -> [tasks, query, outputs]``."""
        adapted = self.guide.unroll(support_x, support_y, query_x, None, way)[-1]
        return self.guide.predictor(query_x, adapted.loc)
