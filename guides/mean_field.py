"""Mean-field guides over a network's weights: K Gaussians, or K points, as one batch of parameters."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.bayesian.weight_scales import WeightScales
from models.distributions.diagonal import DiagonalGaussian
from models.distributions.scaled import ScaledGaussian
from models.sites import Site


class MeanFieldGuide(PyroModule):
    """q(w_k) = N(loc_k, diag exp(log_scale_k)²) for k = 1..K, trained side by side.

    Under our objective and in training mode the weights are drawn where the network uses them (:mod:`models.bayesian.draws`).
    In evaluation mode, and always under Pyro's own ``SVI``, ``Predictive`` and the like, the site holds actual draws.

    With ``scales`` its parameters are in units of s, q(w_k) = s ∘ N(m_k, diag r_k²): a step of training then moves every weight
    in proportion to its scale, and a prior of the same scales can learn them (see
    :class:`~models.distributions.scaled.ScaledGaussian`).

    Args:
        loc: ``[K, P]`` initial means, such as :meth:`~models.bayesian.network.BayesianNetwork.initial_weights`.
        scale: initial standard deviation: a number, or ``[K, P]``; in units of ``scales`` where there are any. Small beside the
            means, or the first outputs are noise.
        deferred: ``False`` draws under our objective too: one plain draw of all weights per step. A model other than
            :class:`~models.bayesian.network.BayesianNetwork` needs that.
        scales: s; 1 when not given. Where they are learned they belong to the prior: the guide reads them, and they are no
            parameters of its own.

    Source: Blundell et al. 2015, section 3; K copies: slide "β-BNN".
    """

    capturable = True  # by :class:`~inference.runs.graphs.CapturedTerms`

    def __init__(
        self, loc: Tensor, scale: float | Tensor = 0.02, *, deferred: bool = True, scales: WeightScales | None = None
    ) -> None:
        super().__init__()
        self.borrowed = (scales,)  # a tuple, lest learned scales be registered as a part
        if scales is not None and not list(scales.parameters()):
            self.units = scales  # others go where the guide goes, even where the prior has none
        unit = torch.zeros_like(loc[0]) if scales is None else scales.rows().detach().to(loc)
        self.standard_loc = nn.Parameter(loc * (-unit).exp())
        self.standard_log_scale = nn.Parameter(torch.as_tensor(scale, dtype=loc.dtype).log().expand_as(loc).clone())
        self.deferred = deferred

    @property
    def scales(self) -> WeightScales | None:
        """s."""
        return self.borrowed[0]

    @property
    def loc(self) -> Tensor:
        """Means of the weights, ``[K, P]``."""
        return self.standard_loc if self.scales is None else self.standard_loc * self.scales.rows().exp()

    @property
    def log_scale(self) -> Tensor:
        """Log standard deviations of the weights (of their own part, where the covariance has another), ``[K, P]``."""
        return self.standard_log_scale if self.scales is None else self.standard_log_scale + self.scales.rows()

    @property
    def factor(self) -> Tensor | None:
        """Of the covariance's low-rank part, which there is none of here."""
        return None

    @torch.no_grad()
    def place(self, loc: Tensor, log_scale: Tensor) -> None:
        """Put these means and log standard deviations of the weights, ``[K, P]``, in place of its own."""
        unit = torch.zeros_like(loc[0]) if self.scales is None else self.scales.rows()
        self.standard_loc.copy_(loc * (-unit).exp())
        self.standard_log_scale.copy_(log_scale - unit)

    @torch.no_grad()
    def restart(self, loc: Tensor, scale: float) -> None:
        """Put these means of the weights, ``[K, P]``, in place of its own, with standard deviations as at the start."""
        unit = torch.zeros_like(loc[0]) if self.scales is None else self.scales.rows()
        self.standard_loc.copy_(loc * (-unit).exp())
        self.standard_log_scale.fill_(math.log(scale))

    def distribution(self) -> dist.TorchDistribution:
        """batch_shape ``[K, 1]`` (the plates), event_shape ``[P]``."""
        loc, log_scale, deferred = self.standard_loc.unsqueeze(-2), self.standard_log_scale.unsqueeze(-2), self.deferred
        if self.scales is None:
            return DiagonalGaussian(loc, log_scale, deferred=deferred and self.training)
        return ScaledGaussian(DiagonalGaussian(loc, log_scale), self.scales, deferred=deferred and self.training)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Sample the site ``weights``; the data are not looked at."""
        with pyro.plate("posteriors", len(self.standard_loc), dim=-2):
            pyro.sample("weights", self.distribution())

    def says_sites(self, *args: Any, **kwargs: Any) -> bool:
        """Whether :meth:`sites` says all of a call: it does."""
        return True

    def sites(self, *args: Any, **kwargs: Any) -> dict[str, Site]:
        """What a call samples, by name."""
        return {"weights": Site(self.distribution(), plates=(len(self.standard_loc), 1))}


class PointGuide(PyroModule):
    """q(w_k) = δ(w − loc_k): maximum likelihood at β = 0, maximum a posteriori at β = 1.

    Args:
        loc: ``[K, P]`` initial weights.
        scales: units s that its parameters are in, which are not learned; 1 when not given.
    """

    def __init__(self, loc: Tensor, scales: WeightScales | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "unit", torch.ones(loc.shape[-1:]) if scales is None else scales.rows().detach().exp(), persistent=False
        )
        self.standard_loc = nn.Parameter(loc / self.unit)

    @property
    def loc(self) -> Tensor:
        """The weights, ``[K, P]``."""
        return self.standard_loc * self.unit

    @torch.no_grad()
    def place(self, loc: Tensor) -> None:
        """Put these weights, ``[K, P]``, in place of its own."""
        self.standard_loc.copy_(loc / self.unit)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Sample the site ``weights``."""
        with pyro.plate("posteriors", len(self.standard_loc), dim=-2):
            pyro.sample("weights", dist.Delta(self.loc.unsqueeze(-2), event_dim=1))
