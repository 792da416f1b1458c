"""Few-shot learning without forgetting: new classes beside the base classes, whose classifiers are the prior's components."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.plates import num_classes, task_plate
from models.tasks.model import EmpiricalBayesModel
from models.tasks.priors import MixturePrior


class BaseAndNewModel(EmpiricalBayesModel):
    """Queries belong to ``base`` known or ``way`` new classes; outputs and labels list the known classes first.

    Sites: ``base_weights`` (event ``[base, D]``), each from its own component; ``weights`` of the new classes from the
    mixture of the task's base components; ``labels``. Source: Hu et al. 2019, section 3, evaluation (b).
    """

    prior: MixturePrior

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
        base_classes: Tensor | None = None,
    ) -> Tensor:
        """As :class:`~models.tasks.model.EmpiricalBayesModel`, with ``base_classes`` ``[tasks, base]``: the components that are
        known classes of each task (in training, those that do not play the new ones)."""
        assert base_classes is not None
        rows = self.predictor.rows(num_classes(support_y) if way is None else way)
        known = tuple(h[:, None] for h in known_components(self.prior, base_classes))  # [tasks, 1, base, D]
        with task_plate(query_x, None):
            base = pyro.sample("base_weights", plated_base_weights(self.prior, base_classes))
            new = pyro.sample("weights", self.prior.distribution(known, rows))
            weights = torch.cat([base.expand(*new.shape[:-2], -1, -1), new], dim=-2).squeeze(-3)
            with pyro.plate("queries", query_x.shape[1], dim=-1):
                return pyro.sample("labels", self.likelihood(self.predictor(query_x, weights)), obs=query_y)


def known_components(prior: MixturePrior, base_classes: Tensor) -> tuple[Tensor, ...]:
    """ψ of each task's known classes: mean and log standard deviation ``[tasks, base, D]`` of their components."""
    return tuple(h[base_classes] for h in prior.hyperparameters())


def plated_base_weights(prior: MixturePrior, base_classes: Tensor) -> dist.TorchDistribution:
    """N(μ_k, diag σ_k²) of each task's base classes: batch_shape ``[tasks, 1]`` (the plates), event_shape ``[base, D]``.

    Source: Hu et al. 2019, section 3: "the weight of the predictor for classifying base categories are sampled from p_ψ".
    """
    loc, log_scale = (h[:, None] for h in known_components(prior, base_classes))
    return dist.Normal(loc, log_scale.exp()).to_event(2)
