"""Ridge regression on one-hot labels: a closed-form classifier of each task, as a point and with its exact posterior."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor

from guides.tasks.starts import Start
from models.distributions.support_gaussian import SupportGaussian, WhitePrecision
from models.parameters import declare
from models.plates import num_classes, task_plate
from models.sites import Site
from models.tasks.priors import GaussianPrior


def ridge_weights(features: Tensor, targets: Tensor, strength: Tensor, *, dual: bool | None = None) -> Tensor:
    """argmin_W Σ_i ‖y_i − W x_i‖² + λ ‖W‖²: ``[..., n, D]`` and ``[..., n, outputs]`` to ``[..., outputs, D]``.

    By the smaller of two systems, Wᵀ = (Xᵀ X + λ I)⁻¹ Xᵀ Y = Xᵀ (X Xᵀ + λ I)⁻¹ Y. Source: Bertinetto et al. 2019,
    "Meta-learning with differentiable closed-form solvers", section 3.2. Their code divides X and Y by √n, so that its λ is one
    for each item: ours times n.

    Args:
        features: X.
        targets: Y.
        strength: λ > 0, one number, or ``[D]`` for a λ of each feature.
        dual: whether by n × n matrices; where they are the smaller ones when not given.
    """
    scales = strength.rsqrt()
    white = WhitePrecision((features * scales).unsqueeze(-3), dual=dual)
    return white.shrink(targets.unsqueeze(-3)).squeeze(-3).mT * scales


class RidgeClassifierStart(Start):
    """λ(dˡ) for classification: ridge regression on the one-hot labels of the support, with a learned strength.

    With a delta posterior and no steps, and :class:`~models.tasks.predictors.LinearPredictor` as ŷ, it is R2-D2: logits are
    a ⟨x, w_c⟩ with a learned. Least squares on 0 and 1 says nothing of how sure a class is, so that all of the calibration is
    in a. The same b added to all logits, which R2-D2 has too, changes no probability. The posterior's scale is that of the
    best diagonal Gaussian for noise of 1.

    Source: Bertinetto et al. 2019, section 3.2; Lee et al. 2019 (MetaOptNet), the head "RR", has λ fixed.

    Args:
        strength: initial λ, the weight of ‖W‖².
        learned: whether λ is, on the log scale.
    """

    logarithms: ClassVar = ("log_strength",)
    log_strength: Tensor

    def __init__(self, strength: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        declare(self, "log_strength", torch.tensor(strength).log(), learned=learned)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        strength = self.log_strength.exp()
        loc = ridge_weights(support_x, one_hot(support_y, rows, support_x), strength)
        precision = strength + support_x.square().sum(-2, keepdim=True)
        return loc, (-0.5 * precision.log()).expand_as(loc)


class RidgePosteriorGuide(PyroModule):
    """q(w_t) = p(w given support) as if one-hot labels were linear in the features, y_c = ⟨x, w_c⟩ + noise: R2-D2 with a rate.

    The mean is ridge regression of strength λ = noise² / scale² of the prior, around the prior's mean; the covariance is exact,
    one for all classes of a task. The model judges its draws by its own likelihood, such as a categorical one, of which the
    objective is then a bound as for any q; and their spread tells how far the labels of few items are to be trusted.

    Sources: Bertinetto et al. 2019, section 3.2; Bishop 2006, equations 3.50 and 3.51.

    Args:
        prior: the model's own module.
        noise: standard deviation of a one-hot label around its mean, initial.
        learned: whether the noise is, on the log scale.
    """

    correlated = True  # a posterior that is no product over weights
    logarithms: ClassVar = ("log_noise",)
    log_noise: Tensor

    def __init__(self, prior: GaussianPrior, noise: float = 0.3, *, learned: bool = True) -> None:
        super().__init__()
        self.prior = prior
        declare(self, "log_noise", torch.tensor(noise).log(), learned=learned)

    def posterior(self, support_x: Tensor, support_y: Tensor, way: int) -> SupportGaussian:
        """batch_shape ``[tasks]``, event_shape ``[way, D]``, of ``[tasks, n, D]`` and ``[tasks, n]``."""
        loc, log_scale = self.prior.moments(self.prior.hyperparameters())  # [1, D]
        weight = (-self.log_noise).exp()
        residuals = one_hot(support_y, way, support_x) - support_x @ loc.mT
        prior = SupportGaussian(loc.expand(way, -1), (-2 * log_scale).exp(), weight * support_x, by_rows=True)
        return prior.told(weight * residuals)

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> None:
        """Sample the site ``weights`` (event ``[way, D]``) in the plate ``tasks``; the queries are not looked at."""
        site = self.sites(support_x, support_y, query_x, query_y, way)["weights"]
        with task_plate(query_x, None):
            pyro.sample("weights", site.distribution)

    def says_sites(self, *args: Any, **kwargs: Any) -> bool:
        """Whether :meth:`sites` says all of a call: always."""
        return True

    def sites(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> dict[str, Site]:
        """What a call samples, by name; arguments as of the call."""
        way = num_classes(support_y) if way is None else way
        posterior = self.posterior(support_x.unsqueeze(-3), support_y.unsqueeze(-2), way)  # [tasks, 1, ...]: the plates
        return {"weights": Site(posterior, plates=(query_x.shape[0], 1))}


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """``[..., n]`` to ``[..., n, classes]``, of the dtype of ``like``."""
    return F.one_hot(labels, classes).to(like.dtype)
