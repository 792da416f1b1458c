"""Free Gaussians for each task, without amortization: what an amortized guide is measured against."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.tasks.families import Family, PosteriorParameters
from models.distributions.matrix import MatrixNormal
from models.plates import task_plate


class FreeGuide(PyroModule):
    """Base of q(w_t) whose parameters are each task's own; the tasks are always the same ones, in the same order.

    Source: Hu et al. 2019, equation 5 (exact variational inference, before amortization).
    """

    def distribution(self) -> dist.TorchDistribution:
        """q, with batch_shape ``[tasks, 1]`` (the plates) and event_shape ``[rows, D]``."""
        raise NotImplementedError

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> None:
        """Sample the site ``weights`` in the plate ``tasks``; the data are not looked at."""
        with task_plate(query_x, None):
            pyro.sample("weights", self.distribution())


class FreeGaussianGuide(FreeGuide):
    """q(w_t) = N(m_t, diag s_t²).

    Args:
        loc: initial means, ``[tasks, rows, D]``.
        scale: initial standard deviations, of a shape that broadcasts to it.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = nn.Parameter(scale.detach().log().expand_as(loc).clone())

    def distribution(self) -> dist.TorchDistribution:
        return Family.GAUSSIAN.distribution(PosteriorParameters(self.loc, self.log_scale))


class FullCovarianceGuide(FreeGuide):
    """q(w_t) = N(m_t, L_t L_tᵀ) over all ``rows · D`` weights of a task: the exact family for linear regression.

    Args:
        loc: initial means, ``[tasks, rows, D]``.
        scale: initial standard deviations, of a shape that broadcasts to it; covariances start at 0.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.detach().clone())
        self.factor = nn.Parameter(torch.diag_embed(scale.detach().log().expand_as(loc).flatten(1)))

    def scale_tril(self) -> Tensor:
        """L: ``[tasks, rows · D, rows · D]``, lower triangular with positive diagonal."""
        return self.factor.tril(-1) + torch.diag_embed(self.factor.diagonal(dim1=-2, dim2=-1).exp())

    def covariance(self) -> Tensor:
        """L Lᵀ."""
        return self.scale_tril() @ self.scale_tril().mT

    def distribution(self) -> dist.TorchDistribution:
        return MatrixNormal(self.loc[:, None], self.scale_tril()[:, None])
