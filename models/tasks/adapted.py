"""The program of a task whose prior has seen the support, and whose weights are adapted to it after they are drawn."""

from __future__ import annotations

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.likelihoods import CategoricalLikelihood, Likelihood
from models.plates import num_classes, task_plate
from models.tasks.predictors import Predictor


class AdaptedModel(PyroModule):
    """Tasks t with weights θ_t ~ p(θ given D_t), φ_t = adapt(θ_t, D_t) and labels y_ti ~ p(y given ŷ(x_ti, φ_t)); D_t is the
    support.

    Sites: ``weights`` (θ, event ``[rows, D]``) in the plate ``tasks``, ``labels`` in ``tasks`` × ``queries``. What is
    deterministic, φ, is no site. Without ``query_y`` the same program samples labels.

    An ELBO of this program bounds log p(y_Q given x_Q, D), where one of :class:`~models.tasks.model.EmpiricalBayesModel`
    bounds log p(y_Q given x_Q): their rates are against different priors and are not to be compared.

    Source: Finn, Xu and Levine 2018, "Probabilistic model-agnostic meta-learning", algorithms 1 and 2.

    Args:
        prior: p(θ given D), from support, its labels, queries, ``None`` and the way to a distribution of batch_shape
            ``[tasks, 1]`` and event_shape ``[rows, D]``, such as :class:`~guides.tasks.query_informed.DescentGaussian`.
        adapt: from θ ``[..., tasks, rows, D]``, support, its labels and queries to φ of the same shape, such as
            :class:`~guides.tasks.query_informed.Adaptation`.
        predictor: ŷ(x, φ).
        likelihood: p(y given ŷ); categorical when not given.
    """

    def __init__(self, prior: nn.Module, adapt: nn.Module, predictor: Predictor, likelihood: Likelihood | None = None) -> None:
        super().__init__()
        self.prior, self.adapt, self.predictor = prior, adapt, predictor
        self.likelihood = likelihood if likelihood is not None else CategoricalLikelihood()

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        """Run the program; shapes as in :class:`~models.tasks.model.EmpiricalBayesModel`."""
        way = num_classes(support_y) if way is None else way
        prior = self.prior(support_x, support_y, query_x, None, way)
        with task_plate(query_x, None):
            weights = pyro.sample("weights", prior)
            adapted = self.adapt(weights.squeeze(-3), support_x, support_y, query_x)
            labels = self.likelihood.given(support_y.shape[-1] / way, way)(self.predictor(query_x, adapted))
            with pyro.plate("queries", query_x.shape[1], dim=-1):
                return pyro.sample("labels", labels, obs=query_y)
