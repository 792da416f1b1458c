"""How far a posterior departs from the prior."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from guides.tasks.families import PosteriorParameters


class PriorGate(nn.Module):
    """θ = g θ_λ + (1 − g) θ_p in each dimension, for the mean and the log standard deviation, 0 ≤ g ≤ 1 learned.

    Open (g = 1) it leaves θ_λ as it is; closed (g = 0) the posterior is the prior (of a mixture prior: the Gaussian with its
    moments), whatever the task, and its rate 0. So where β is so large that no nat pays, a guide reaches what guessing costs,
    and dimensions that do not pay are closed one by one. Conjugate posteriors of a Gaussian mean have this form: their means
    are shrunk towards the prior's by the share of the precision that is the prior's own.

    Args:
        num_features: D.
        open: initial g, between 0 and 1.
    """

    logarithms: ClassVar = ("logit",)  # of the odds

    def __init__(self, num_features: int, open: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((num_features,), float(open)).logit())

    @torch.no_grad()
    def close(self) -> None:
        """Make every posterior the prior."""
        self.logit.fill_(-torch.inf)

    def forward(self, parameters: PosteriorParameters, prior: PosteriorParameters) -> PosteriorParameters:
        """θ_λ and θ_p, ``[..., 1, D]``, to θ."""
        opened, closed = self.logit.sigmoid(), (-self.logit).sigmoid()
        mixed = (opened * ours + closed * theirs for ours, theirs in zip(parameters, prior, strict=True))
        return PosteriorParameters(*mixed)
