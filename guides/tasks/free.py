"""A free diagonal Gaussian for each task: what amortization is measured against."""

from __future__ import annotations

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.tasks.families import Family, PosteriorParameters
from models.plates import task_plate


class FreeGaussianGuide(PyroModule):
    """q(w_t) = N(m_t, diag s_t²), one set of parameters per task.

    Source: Hu et al. 2019, equation 5 (exact variational inference, before amortization).

    Args:
        loc: initial means, ``[tasks, rows, D]``.
        scale: initial standard deviations, of a shape that broadcasts to it.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = nn.Parameter(scale.detach().log().expand_as(loc).clone())

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> None:
        with task_plate(query_x, None):
            pyro.sample("weights", Family.GAUSSIAN.distribution(PosteriorParameters(self.loc, self.log_scale)))
