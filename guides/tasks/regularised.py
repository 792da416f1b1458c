"""Guides of the models that cannot learn tasks by heart for free: of weights that all tasks share, and of codes."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.plates import task_plate
from models.sites import Site
from models.tasks.regularised import GaussianEncoder


class EncoderGuide(PyroModule):
    """q(θ) = N(loc, diag exp(log_scale)²) of the site ``encoder`` of a :class:`~models.tasks.regularised.RegularisedModel`: one
    draw for all tasks, support and queries.

    Without a scale it is a point, and β times its rate, −log N(θ; 0, I), weight decay: β/2 ‖θ‖² and a constant.

    Source: Yin et al. 2020, section 4.2.

    Args:
        loc: ``[P]``, where the means start.
        scale: standard deviation at first, learned; ``None`` for a point.
        at_mean: in evaluation mode θ is the mean of q, a point. In training mode it is drawn all the same.
    """

    logarithms: ClassVar = ("log_scale",)

    def __init__(self, loc: Tensor, scale: float | None = 0.05, *, at_mean: bool = False) -> None:
        super().__init__()
        self.at_mean = at_mean
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = None if scale is None else nn.Parameter(torch.full_like(self.loc, math.log(scale)))

    def drawn(self) -> EncoderGuide:
        """The same guide, sharing all parameters, with draws in evaluation mode too."""
        other = copy.copy(self)
        other.at_mean = False
        return other

    def distribution(self) -> dist.TorchDistribution:
        """batch_shape ``[]``, event_shape ``[P]``."""
        if self.log_scale is None or (self.at_mean and not self.training):
            return dist.Delta(self.loc, event_dim=1)
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Sample the site ``encoder``; the data are not looked at."""
        pyro.sample("encoder", self.distribution())

    def says_sites(self, *args: Any, **kwargs: Any) -> bool:
        """:meth:`sites` says all of a call."""
        return True

    def sites(self, *args: Any, **kwargs: Any) -> dict[str, Site]:
        """What a call samples, by name."""
        return {"encoder": Site(self.distribution())}


class CodesGuide(PyroModule):
    """q(z given x) of each item by itself: the sites ``support_codes`` and ``codes`` of a
    :class:`~models.tasks.regularised.CodedModel`.

    Source: Yin et al. 2020, section 4.1.

    Args:
        encoder: q, the model's own.
        at_means: in evaluation mode codes are the means of q, points without a rate, in the support and of queries: so the
            authors' code tests MR-MAML, whose steps fit what draws of the support's codes happen to be. In training mode they
            are draws all the same.
    """

    def __init__(self, encoder: GaussianEncoder, *, at_means: bool = False) -> None:
        super().__init__()
        self.encoder, self.at_means = encoder, at_means

    def distribution(self, x: Tensor) -> dist.TorchDistribution:
        """Of the codes of items ``[..., n, D]``: batch_shape ``[..., n]``, event_shape ``[codes]``."""
        found = self.encoder(x)
        return dist.Delta(found.mean, event_dim=1) if self.at_means and not self.training else found

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Sample both sites; arguments as of the model."""
        with task_plate(query_x, None):
            for name, items, plate in (("support_codes", support_x, "support"), ("codes", query_x, "queries")):
                with pyro.plate(plate, items.shape[1], dim=-1):
                    pyro.sample(name, self.distribution(items))

    def says_sites(self, *args: Any, **kwargs: Any) -> bool:
        """:meth:`sites` says all of a call."""
        return True

    def sites(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Site]:
        """What a call samples, by name; arguments as of the call."""
        parts = {"support_codes": support_x, "codes": query_x}
        return {name: Site(self.distribution(items), plates=tuple(items.shape[:2])) for name, items in parts.items()}
