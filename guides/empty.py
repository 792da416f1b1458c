"""The guide of models in which nothing is latent."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule


class EmptyGuide(PyroModule):
    """Samples nothing: the rate is zero and the negative ELBO is the negative log-likelihood."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Take what the model takes, and do nothing."""
