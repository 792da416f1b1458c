"""The guide of few-shot learning without forgetting the base classes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from guides.tasks.families import Family, PosteriorParameters
from guides.tasks.synthetic import SyntheticGradientGuide
from models.plates import task_plate
from models.tasks.base_and_new import known_components, plated_base_weights
from models.tasks.priors import MixturePrior


class BaseAndNewGuide(SyntheticGradientGuide):
    """Synthetic gradient steps on the new classes' weights, with queries that may belong to base classes.

    The base classes' weights keep their prior component, so their rate is zero; the inner steps descend the KL to the mixture
    of the task's own base components, as the objective does. Source: Hu et al. 2019, section 3 (b).
    """

    prior: MixturePrior

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
        base_classes: Tensor | None = None,
    ) -> PosteriorParameters:
        """Sample ``base_weights`` and ``weights``; shapes as in :class:`~models.tasks.base_and_new.BaseAndNewModel`."""
        assert base_classes is not None
        known = known_components(self.prior, base_classes)
        trajectory = self.unroll(support_x, support_y, query_x, query_y, way, hyperparameters=known, known_weights=known[0])
        parameters = self.read(trajectory)
        with task_plate(query_x, None):
            base = plated_base_weights(self.prior, base_classes)
            pyro.sample("base_weights", base if self.family is Family.GAUSSIAN else dist.Delta(base.mean, event_dim=2))
            pyro.sample("weights", self.family.distribution(parameters))
        return parameters
