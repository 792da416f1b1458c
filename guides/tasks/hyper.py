"""The variational posterior q(ψ) of a hierarchical prior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.tasks.priors import HierarchicalGaussianPrior


class HyperGuide(PyroModule):
    """q(ψ): independent Gaussians over μ and log σ of a :class:`~models.tasks.priors.HierarchicalGaussianPrior`, of
    standard deviation ``scale`` at the start.

    Source: Hu et al. 2019, equation 2 (which the paper replaces by a point estimate).
    """

    def __init__(self, prior: HierarchicalGaussianPrior, *, scale: float = 0.05) -> None:
        super().__init__()
        self.locs = nn.ParameterList([prior.loc.detach().clone(), prior.log_scale.detach().clone()])
        self.log_scales = nn.ParameterList([torch.full_like(loc, scale).log() for loc in self.locs])

    def forward(self) -> tuple[Tensor, ...]:
        """Sample ψ = (μ, log σ), each ``[..., D]``."""
        sites = zip(("prior_loc", "prior_log_scale"), self.locs, self.log_scales, strict=True)
        return tuple(pyro.sample(name, dist.Normal(m, s.exp()).to_event(1)) for name, m, s in sites)
