"""Few-shot learning without forgetting: new classes beside the base classes, whose classifiers are the prior's components."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.plates import num_classes, task_plate
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import Predictor
from models.tasks.priors import MixturePrior


class BaseAndNewModel(EmpiricalBayesModel):
    """Queries belong to ``base`` known or ``way`` new classes; outputs and labels list the known classes first.

    Sites: ``base_weights`` (event ``[base, D]``), each from its own component; ``weights`` of the new classes from the
    mixture of the task's base components; ``labels``. Source: Hu et al. 2019, section 3, evaluation (b).

    Args:
        prior, predictor: as in :class:`~models.tasks.model.EmpiricalBayesModel`.
        offset: of the outputs of new classes; a new one when not given.
    """

    prior: MixturePrior

    def __init__(self, prior: MixturePrior, predictor: Predictor, offset: NewOffset | None = None) -> None:
        super().__init__(prior, predictor)
        self.offset = NewOffset() if offset is None else offset

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
                outputs = self.offset(self.predictor(query_x, weights), base_classes.shape[-1])
                return pyro.sample("labels", self.likelihood(outputs), obs=query_y)


class NewOffset(nn.Module):
    """A learned number that is added to the outputs of new classes: how new classes fare beside base classes is then not left
    to how long their weights are, or how wide their posteriors.

    Model and guide share it.
    """

    logarithms: ClassVar = ("value",)

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.0))

    def forward(self, outputs: Tensor, known: int) -> Tensor:
        """``outputs`` ``[..., query, base + way]``, of the ``known`` classes first."""
        base, new = outputs.tensor_split([known], dim=-1)
        return torch.cat([base, new + self.value], dim=-1)


def known_components(prior: MixturePrior, base_classes: Tensor) -> tuple[Tensor, ...]:
    """ψ of each task's known classes: mean and log standard deviation ``[tasks, base, D]`` of their components."""
    return tuple(h[base_classes] for h in prior.hyperparameters())


def plated_base_weights(prior: MixturePrior, base_classes: Tensor) -> dist.TorchDistribution:
    """N(μ_k, diag σ_k²) of each task's base classes: batch_shape ``[tasks, 1]`` (the plates), event_shape ``[base, D]``.

    Source: Hu et al. 2019, section 3: "the weight of the predictor for classifying base categories are sampled from p_ψ".
    """
    loc, log_scale = (h[:, None] for h in known_components(prior, base_classes))
    return dist.Normal(loc, log_scale.exp()).to_event(2)
