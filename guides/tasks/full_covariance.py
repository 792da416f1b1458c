"""A free full-covariance Gaussian for each task: no amortization, the exact family for linear regression."""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.distributions.matrix import MatrixNormal
from models.plates import task_plate


class FullCovarianceGuide(PyroModule):
    """q(w_t) = N(m_t, L_t L_tᵀ) over all ``way · D`` weights of a task, one set of parameters per task.

    Source: Hu et al. 2019, equation 5 (exact variational inference, before amortization).

    Args:
        tasks, way, num_features: sizes.
        loc, scale: initial means and standard deviations, of shapes that broadcast to ``[tasks, way, num_features]``.
    """

    def __init__(
        self, tasks: int, way: int, num_features: int, *, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0
    ) -> None:
        super().__init__()
        shape = (tasks, way, num_features)
        start, spread = torch.as_tensor(loc).detach(), torch.as_tensor(scale).detach()
        self.loc = nn.Parameter(start.expand(shape).clone())
        self.factor = nn.Parameter(torch.diag_embed(spread.log().expand(shape).flatten(1)).clone())

    def scale_tril(self) -> Tensor:
        """L: ``[tasks, way · D, way · D]``, lower triangular with positive diagonal."""
        return self.factor.tril(-1) + torch.diag_embed(self.factor.diagonal(dim1=-2, dim2=-1).exp())

    def covariance(self) -> Tensor:
        """L Lᵀ."""
        return self.scale_tril() @ self.scale_tril().mT

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> None:
        with task_plate(query_x, None):
            pyro.sample("weights", MatrixNormal(self.loc[:, None], self.scale_tril()[:, None]))
