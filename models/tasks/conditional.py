"""Few-shot programs in which nothing is latent: p(y given x, support) written down directly, one copy per task."""

from __future__ import annotations

from typing import Any

import pyro
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from models.likelihoods import Likelihood, TemperedCategorical
from models.plates import num_classes, task_plate
from models.tasks.scorers.base import Scorer


class ConditionalModel(PyroModule):
    """Labels y_ti ~ p(y given ŷ(x_ti, S_t)) of the queries of tasks t with support S_t: what a scorer computes is all there is.

    Site: ``labels`` in ``tasks`` × ``queries``; the guide is :class:`~guides.empty.EmptyGuide`. Queries with label −1 are
    unlabelled: a transductive scorer sees them, and the site, whose value for them is 0, is masked there. Support items with
    label −1 are the scorer's to use or to leave out.

    Args:
        scorer: ŷ.
        likelihood: p(y given ŷ); categorical with a temperature that is fitted after training when not given.
    """

    def __init__(self, scorer: Scorer, likelihood: Likelihood | None = None) -> None:
        super().__init__()
        self.scorer = scorer
        self.likelihood = likelihood if likelihood is not None else TemperedCategorical()

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Run the program: it scores the query labels, or draws them where there are none.

        Args:
            support_x: ``[tasks, support, *item]``.
            support_y: ``[tasks, support]``, −1 where an item is unlabelled.
            query_x: ``[tasks, query, *item]``.
            query_y: ``[tasks, query]``, −1 where an item is unlabelled, or ``None``.
            way: classes per task; the scorer's, or else read off ``support_y``, when not given.

        Returns:
            The labels, as given or drawn, ``[tasks, query]``.

        Raises:
            UserError: a number of classes that the scorer cannot take.
        """
        if way is None:
            way = num_classes(support_y) if self.scorer.way is None else self.scorer.way
        outputs = self.scorer(support_x, support_y, query_x, way)
        labels = self.likelihood.given(support_y.shape[-1] / way, way)(outputs)
        with task_plate(query_x, None), pyro.plate("queries", query_x.shape[1], dim=-1):
            if query_y is None:
                return pyro.sample("labels", labels)
            if query_y.is_floating_point():  # targets of regression: all are known
                return pyro.sample("labels", labels, obs=query_y)
            known: Any = query_y >= 0
            with poutine.mask(mask=known):
                pyro.sample("labels", labels, obs=query_y.clamp_min(0))
            return query_y
