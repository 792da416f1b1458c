"""Mean-field guides over a network's weights: K Gaussians, or K points, as one batch of parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.distributions.diagonal import DiagonalGaussian


class MeanFieldGuide(PyroModule):
    """q(w_k) = N(loc_k, diag exp(log_scale_k)²) for k = 1..K, trained side by side.

    Under our objective and in training mode the weights are drawn where the network uses them (:mod:`models.bayesian.draws`).
    In evaluation mode, and always under Pyro's own ``SVI``, ``Predictive`` and the like, the site holds actual draws.

    Args:
        loc: ``[K, P]`` initial means, such as :meth:`~models.bayesian.network.BayesianNetwork.initial_weights`.
        scale: initial standard deviation: a number, or ``[K, P]``. Small beside the means, or the first outputs are noise.
        deferred: ``False`` draws under our objective too: one plain draw of all weights per step. A model other than
            :class:`~models.bayesian.network.BayesianNetwork` needs that.

    Source: Blundell et al. 2015, section 3; K copies: slide "β-BNN".
    """

    def __init__(self, loc: Tensor, scale: float | Tensor = 0.02, *, deferred: bool = True) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(torch.as_tensor(scale, dtype=loc.dtype).log().expand_as(loc).clone())
        self.deferred = deferred

    @property
    def factor(self) -> Tensor | None:
        """Of the covariance's low-rank part, which there is none of here."""
        return None

    def distribution(self) -> dist.TorchDistribution:
        """batch_shape ``[K, 1]`` (the plates), event_shape ``[P]``."""
        deferred = self.deferred and self.training
        return DiagonalGaussian(self.loc.unsqueeze(-2), self.log_scale.unsqueeze(-2), deferred=deferred)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Sample the site ``weights``; the data are not looked at."""
        with pyro.plate("posteriors", len(self.loc), dim=-2):
            pyro.sample("weights", self.distribution())


class PointGuide(PyroModule):
    """q(w_k) = δ(w − loc_k): maximum likelihood at β = 0, maximum a posteriori at β = 1.

    Args:
        loc: ``[K, P]`` initial weights.
    """

    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Sample the site ``weights``."""
        with pyro.plate("posteriors", len(self.loc), dim=-2):
            pyro.sample("weights", dist.Delta(self.loc.unsqueeze(-2), event_dim=1))
