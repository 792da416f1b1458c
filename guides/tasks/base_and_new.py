"""The guide of learning without forgetting."""

from __future__ import annotations

import pyro
from torch import Tensor

from guides.tasks.unrolled import Posterior, SyntheticGradientGuide
from models.plates import task_plate
from models.tasks.base_and_new import plated_base_weights
from models.tasks.priors import MixturePrior


class ForgetNothingGuide(SyntheticGradientGuide):
    """Synthetic gradient steps on the new classes' weights, with queries that may belong to base classes.

    The base classes' weights keep their prior component, so their rate is zero. Source: Hu et al. 2019, section 3 (b).
    """

    prior: MixturePrior

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        base_classes: Tensor | None = None,
    ) -> Posterior:
        """Sample ``base_weights`` and ``weights``; shapes as in :class:`~models.tasks.base_and_new.ForgetNothingModel`."""
        assert base_classes is not None
        known = self.prior.loc[base_classes]
        posterior = self.unroll(support_x, support_y, query_x, known_weights=known)[-1]
        with task_plate(query_x, None):
            pyro.sample("base_weights", plated_base_weights(self.prior, base_classes))
            pyro.sample("weights", self.distribution(posterior))
        return posterior
