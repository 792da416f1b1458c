"""The generative model of a few-shot task: p_ψ(w) Π_i p(y_i given x_i, w), one copy per task."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from models.likelihoods import CategoricalLikelihood, Likelihood
from models.plates import num_classes, task_plate
from models.sites import Site
from models.tasks.predictors import Predictor, takes_mirrored
from models.tasks.priors import Prior


class EmpiricalBayesModel(PyroModule):
    """Tasks t with weights w_t ~ p_ψ and labels y_ti ~ p(y given ŷ(x_ti, w_t)).

    Sites: ``weights`` in the plate ``tasks`` (event ``[rows, D]``), ``labels`` in ``tasks`` × ``queries``. Only the query set
    is scored; the support set is an input of the guide. Without ``query_y`` the same program samples labels.

    Source: Hu et al. 2019, equations 1, 3 and 10 (features f(x) are computed before the call).

    Args:
        prior: p_ψ(w).
        predictor: ŷ(x, w); it says how many rows w has.
        likelihood: p(y given ŷ); categorical when not given.
        num_tasks: N of the whole data set; in training mode the tasks of a batch are scaled up to it, so that a hierarchical
            prior's KL(q(ψ) ‖ p(ψ)) is counted once. A new task, in evaluation mode, counts once. ``None``: the batch is the
            data set.
    """

    def __init__(
        self, prior: Prior, predictor: Predictor, likelihood: Likelihood | None = None, *, num_tasks: int | None = None
    ) -> None:
        super().__init__()
        self.prior, self.predictor = prior, predictor
        self.likelihood = likelihood if likelihood is not None else CategoricalLikelihood()
        self.num_tasks = num_tasks

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Run the generative program.

        Args:
            support_x: ``[tasks, support, *item]``.
            support_y: ``[tasks, support]``.
            query_x: ``[tasks, query, *item]``.
            query_y: ``[tasks, query]`` or ``None``.
            way: classes per task; read off ``support_y`` when not given.

        Returns:
            The labels, observed or sampled, ``[..., tasks, query]``.
        """
        way = num_classes(support_y) if way is None else way
        hyperparameters = self.prior.hyperparameters()
        with task_plate(query_x, self.num_tasks if self.training else None):
            weights = pyro.sample("weights", self.prior.distribution(hyperparameters, self.predictor.rows(way)))
            with pyro.plate("queries", query_x.shape[1], dim=-1):
                return pyro.sample("labels", self.labels(weights, support_y, query_x, way), obs=query_y)

    def labels(self, weights: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> dist.TorchDistribution:
        """p(y given x, w) of all queries, batch_shape ``[..., tasks, query]``; ``weights`` are ``[..., tasks, 1, rows, D]``."""
        outputs = self.predictor(query_x, weights.squeeze(-3))
        return self.likelihood.given(support_y.shape[-1] / way, way)(outputs)

    @property
    def takes_mirrored(self) -> bool:
        """Whether :meth:`sites` takes :class:`~models.distributions.mirrored.Mirrored` draws: sites, labels or a predictor of
        its own expect tensors, and so do hooks."""
        own, usual = type(self), EmpiricalBayesModel
        return (
            own.sites is usual.sites
            and own.labels is usual.labels
            and not vars(self).keys() & {"sites", "labels"}
            and takes_mirrored(self.predictor)
        )

    def says_sites(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> bool:
        """Whether :meth:`sites` says all of a call: not where it scales the tasks up, or has no labels to score."""
        return query_y is not None and not (self.training and self.num_tasks is not None)

    def sites(
        self,
        drawn: Mapping[str, Tensor],
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> dict[str, Site]:
        """What a call samples, by name, at the guide's weights, ``drawn``; arguments as of the call."""
        way = num_classes(support_y) if way is None else way
        prior = self.prior.distribution(self.prior.hyperparameters(), self.predictor.rows(way))
        labels = self.labels(drawn["weights"], support_y, query_x, way)
        return {"weights": Site(prior), "labels": Site(labels, query_y, plates=tuple(query_x.shape[:2]))}
