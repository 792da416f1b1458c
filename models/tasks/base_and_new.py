"""Few-shot learning without forgetting: new classes beside the base classes, whose classifiers are the prior's components."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.plates import num_classes, task_plate
from models.tasks.model import EmpiricalBayesModel
from models.tasks.priors import MixturePrior, Prior, gaussian_kl_gradient


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


class BaseAndNewPrior(Prior):
    """p_ψ of all rows of a task's weights: the ``base`` known classes first, each with its own component of a mixture, then new
    classes, of the mixture of them. ψ are the known components, :func:`known_components`.

    What it says of one row comes in ``base + 1`` rows: those of the known classes, and one for all new classes.

    Args:
        mixture: the model's own prior (shared parameters).
    """

    def __init__(self, mixture: MixturePrior) -> None:
        super().__init__()
        self.mixture = mixture

    def hyperparameters(self) -> tuple[Tensor, ...]:
        """The components of all base classes, ``[components, D]`` each."""
        return self.mixture.hyperparameters()

    def variance(self, hyperparameters: tuple[Tensor, ...]) -> Tensor:
        """``[..., base + 1, D]``"""
        return torch.cat([own_variance(hyperparameters), self.mixture.variance(hyperparameters)], dim=-2)

    def narrowest(self, hyperparameters: tuple[Tensor, ...]) -> Tensor:
        """``[..., base + 1, D]``: a known class meets its own component alone, a new one all of them."""
        return torch.cat([own_variance(hyperparameters), self.mixture.narrowest(hyperparameters)], dim=-2)

    def kl_gradient(self, hyperparameters: tuple[Tensor, ...], loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Of known classes in closed form, of new ones as the mixture has it."""
        own_loc, own_log_scale = hyperparameters
        base, new = slice(own_loc.shape[-2]), slice(own_loc.shape[-2], None)
        to_own = gaussian_kl_gradient(own_loc, own_log_scale, loc[..., base, :], log_scale[..., base, :])
        to_mixture = self.mixture.kl_gradient(hyperparameters, loc[..., new, :], log_scale[..., new, :])
        return torch.cat([to_own[0], to_mixture[0]], dim=-2), torch.cat([to_own[1], to_mixture[1]], dim=-2)


def own_variance(hyperparameters: tuple[Tensor, ...]) -> Tensor:
    """Variance of the weights of each component of ψ, the ``hyperparameters``."""
    return (2 * hyperparameters[1]).exp()
