"""A guide over a network's weights that knows their strongest correlations: low-rank plus diagonal Gaussians."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.mean_field import MeanFieldGuide
from models.bayesian.weight_scales import WeightScales
from models.distributions.low_rank import low_rank_gaussian
from models.precision import full_precision


class LowRankGuide(MeanFieldGuide):
    """q(w_k) = N(loc_k, F_k F_kᵀ + diag exp(log_scale_k)²) for k = 1..K, trained side by side.

    All weights are drawn at once, so gradients are noisier than those of a mean-field guide, and several particles of the
    objective are worth their time. The KL is exact against any prior that factorises over the weights and has a KL from a
    diagonal Gaussian (:mod:`models.distributions.low_rank`).

    Args:
        loc: ``[K, P]`` initial means, such as :meth:`~models.bayesian.network.BayesianNetwork.initial_weights`.
        scale: initial standard deviation; half of the variance is that of F, whose entries are random.
        rank: R, columns of F.
        scales: units of the parameters, see :class:`~guides.mean_field.MeanFieldGuide`.

    Source: Ong, Nott and Smith 2018, section 2; Pyro's ``AutoLowRankMultivariateNormal``.
    """

    def __init__(self, loc: Tensor, scale: float = 0.02, *, rank: int = 10, scales: WeightScales | None = None) -> None:
        super().__init__(loc, scale / 2**0.5, deferred=False, scales=scales)
        noise = torch.randn(*loc.shape, rank, dtype=loc.dtype, device=loc.device)
        self.low_rank_factor = nn.Parameter(scale / (2 * rank) ** 0.5 * noise)

    @property
    def factor(self) -> Tensor:
        """F: ``[K, P, R]``."""
        return self.low_rank_factor if self.scales is None else self.low_rank_factor * self.scales.rows().exp()[..., None]

    @torch.no_grad()
    def restart(self, loc: Tensor, scale: float) -> None:
        super().restart(loc, scale / 2**0.5)

    def distribution(self) -> dist.LowRankMultivariateNormal:
        """batch_shape ``[K, 1]`` (the plates), event_shape ``[P]``."""
        with full_precision(self.standard_loc.device):  # a determinant needs full precision
            return low_rank_gaussian(self.loc.unsqueeze(-2), self.log_scale.unsqueeze(-2), self.factor.unsqueeze(-3))
