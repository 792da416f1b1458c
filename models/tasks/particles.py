"""Few-shot tasks whose posterior is a number of particles, with what can be asked of them in training."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.likelihoods import Likelihood
from models.plates import num_classes, task_plate
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import Predictor
from models.tasks.priors import Prior


class ParticleLoss(StrEnum):
    """What particles are trained by, nats."""

    DISTORTION = "distortion"
    """The mean over particles of −log p(y given x, θ_m): each has to predict by itself."""
    MIXTURE = "mixture"
    """−log of the mean over particles of p(y given x, θ_m), query by query: what their predictions together cost."""
    CHASER = "chaser"
    """½ ‖θ_m − leader_m‖², the mean over particles: each follows what it would be had it seen the queries."""


class ParticleModel(EmpiricalBayesModel):
    """:class:`~models.tasks.model.EmpiricalBayesModel` under a plate of particles, left of ``tasks`` and ``queries``.

    In training mode, with query labels, its sites are those of the loss:

    * mixture: ``labels`` is 1/M Σ_m p(y given x, θ_m), the same for all particles;
    * chaser: an observed site ``leader`` ~ N(θ_m, 1) in ``tasks``; ``labels`` then teach the likelihood and the predictor, and
      the weights hear of them through the leader alone.

    Everywhere else ``labels`` are those of each particle.

    Source: Kim et al. 2018, "Bayesian model-agnostic meta-learning". Their released code trains by the chaser, the sum of
    ‖θ_m − leader_m‖² over particles, and the ensemble of MAMLs beside it by the sum of the particles' own losses.

    Args:
        prior, predictor, likelihood: see :class:`~models.tasks.model.EmpiricalBayesModel`.
        loss: what training asks of the particles.
        leader: from values of the site ``weights`` and the arguments of a call to where these should be, such as
            :meth:`guides.tasks.particles.SteinGuide.lead`.

    Raises:
        ValueError: a chaser without a leader.
    """

    def __init__(
        self,
        prior: Prior,
        predictor: Predictor,
        likelihood: Likelihood | None = None,
        *,
        loss: ParticleLoss | str = ParticleLoss.MIXTURE,
        leader: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(prior, predictor, likelihood)
        self.loss, self.leader = ParticleLoss(loss), leader
        if self.loss is ParticleLoss.CHASER and leader is None:
            raise ValueError("a chaser needs a leader")

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> Tensor:
        if query_y is None or not self.training or self.loss is ParticleLoss.DISTORTION:
            return super().forward(support_x, support_y, query_x, query_y, way)
        way = num_classes(support_y) if way is None else way
        prior = self.prior.distribution(self.prior.hyperparameters(), self.predictor.rows(way))
        with task_plate(query_x, None):
            weights = pyro.sample("weights", prior)
            if self.loss is ParticleLoss.CHASER:
                assert self.leader is not None
                leader = self.leader(weights, support_x, support_y, query_x, query_y, way)
                pyro.sample("leader", dist.Normal(weights, torch.ones_like(weights)).to_event(2), obs=leader)
                labels = self.labels(weights.detach(), support_y, query_x, way)
            else:
                labels = self.mixture(weights, support_y, query_x, way)
            with pyro.plate("queries", query_x.shape[1], dim=-1):
                return pyro.sample("labels", labels, obs=query_y)

    def mixture(self, weights: Tensor, support_y: Tensor, query_x: Tensor, way: int) -> dist.MixtureSameFamily:
        """1/M Σ_m p(y given x, θ_m) of all queries, batch_shape ``[tasks, query]``; arguments as of :meth:`labels`."""
        outputs = self.predictor(query_x, weights.squeeze(-3))
        outputs = outputs.reshape(-1, *outputs.shape[-3:]).movedim(0, -2)  # [tasks, query, M, outputs]
        each = self.likelihood.given(support_y.shape[-1] / way, way)(outputs)
        return dist.MixtureSameFamily(dist.Categorical(logits=outputs.new_zeros(outputs.shape[-2])), each)
