"""The guide of few-shot learning without forgetting the base classes."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from guides.tasks.families import PosteriorParameters
from guides.tasks.gradient_networks import GradientNetwork
from guides.tasks.rules import Rule
from guides.tasks.synthetic import SyntheticGradientGuide
from guides.tasks.unrolled import Part
from models.plates import task_plate
from models.tasks.base_and_new import NewOffset, known_components
from models.tasks.predictors import Predictor
from models.tasks.priors import MixturePrior


class BaseAndNewGuide(SyntheticGradientGuide):
    """Synthetic gradient steps on the weights of new classes, with queries that may belong to base classes, too.

    New classes start from their support. The base classes keep the posterior that is their own prior component, whose rate is
    zero: the classifier that all base images taught is not moved by a task's few unlabelled queries. They are rivals in the
    steps, where ξ sees them as one class, :class:`KnownAsOne`. The inner steps descend a new class's KL to the mixture of the
    task's base components, as the objective does. Source: Hu et al. 2019, section 3 (b).

    Args:
        prior: the model's mixture.
        predictor, start, gradient, rule: as in :class:`~guides.tasks.unrolled.UnrolledGuide`.
        offset: the model's.
        options: of :class:`~guides.tasks.unrolled.UnrolledGuide`.
    """

    prior: MixturePrior
    spread = True

    def __init__(
        self,
        prior: MixturePrior,
        predictor: Predictor,
        start: nn.Module,
        gradient: nn.Module,
        rule: Rule,
        offset: NewOffset,
        **options: Any,
    ) -> None:
        super().__init__(prior, predictor, start, gradient, rule, **options)
        self.offset = offset

    def evidence(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        hyperparameters: tuple[Tensor, ...] = (),
    ) -> list[Part]:
        """As in the base class, beside the known classes, whose components are the ``hyperparameters``."""
        known = hyperparameters[0].shape[-2]
        labels = None if query_y is None else query_y - known  # negative: a known class
        parts = super().evidence(support_x, support_y, query_x, labels)
        return [part._replace(gradient=self.beside_known(part, hyperparameters)) for part in parts]

    def beside_known(self, part: Part, hyperparameters: tuple[Tensor, ...]) -> KnownAsOne:
        """The gradient of a ``part`` of the evidence, with what the known classes say of its items: of these
        ``hyperparameters``."""
        loc, log_scale = hyperparameters
        if self.family.has_rate:
            outputs = self.predictor.mean_outputs(part.items, loc, (2 * log_scale).exp())
        else:
            outputs = self.predictor.outputs(part.items, loc)
        return KnownAsOne(part.gradient, outputs.logsumexp(-1, keepdim=True) - self.offset.value)

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
        base_classes: Tensor | None = None,
    ) -> PosteriorParameters:
        """Sample ``base_weights`` and ``weights``; shapes as in :class:`~models.tasks.base_and_new.BaseAndNewModel`.

        Returns:
            θ of base and new classes, ``[..., tasks, base + way, D]``.
        """
        assert base_classes is not None
        known = PosteriorParameters(*known_components(self.prior, base_classes))
        new = self.read(self.unroll(support_x, support_y, query_x, query_y, way, hyperparameters=known))
        base = PosteriorParameters(*(part.expand(*new.loc.shape[:-2], *part.shape[-2:]) for part in known))
        with task_plate(query_x, None):
            pyro.sample("base_weights", self.family.distribution(base))
            pyro.sample("weights", self.family.distribution(new))
        return PosteriorParameters(*(torch.cat(pair, dim=-2) for pair in zip(base, new, strict=True)))


class KnownAsOne(GradientNetwork):
    """A gradient network of new classes that sees all known classes as one more, the first, whose output is the logarithm of
    the sum of the exponentials of theirs: what counts for a new class is how likely an item is of any known one, however many
    there are.

    Args:
        gradient: of all classes that it sees.
        known: output of the one that stands for the known classes, less the offset of new ones, ``[..., item, 1]``.
    """

    def __init__(self, gradient: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.gradient, self.known = gradient, known

    def forward(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Labels count the new classes from 0; those of known classes are negative."""
        seen = torch.cat([self.known.expand(*outputs.shape[:-1], 1), outputs], dim=-1)
        return self.gradient(seen, None if labels is None else (labels + 1).clamp_min(0))[..., 1:]
