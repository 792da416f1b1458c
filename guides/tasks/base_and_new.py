"""The guide of few-shot learning without forgetting the base classes."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from guides.tasks.families import PosteriorParameters
from guides.tasks.rules import Pull, Rule
from guides.tasks.synthetic import SyntheticGradientGuide
from models.plates import task_plate
from models.tasks.base_and_new import BaseAndNewPrior, known_components
from models.tasks.predictors import Predictor
from models.tasks.priors import MixturePrior


class BaseAndNewGuide(SyntheticGradientGuide):
    """Synthetic gradient steps on the weights of base and new classes together, with queries that may belong to either.

    New classes start from their support. The base classes' weights start at their own prior components, where their rate is
    zero, and leave them only as far as the queries pay for it. The inner steps descend each class's own KL, as the objective
    does: of a base class to its component, of a new one to the mixture of the task's base components. Source: Hu et al. 2019,
    section 3 (b), where base weights stay at p_ψ.

    Args:
        prior: the model's mixture.
        predictor, start, gradient: as in :class:`~guides.tasks.unrolled.UnrolledGuide`.
        base_rule, new_rule: how the weights of base classes move, and those of new ones.
        options: of :class:`~guides.tasks.unrolled.UnrolledGuide`.
    """

    prior: BaseAndNewPrior
    spread = True

    def __init__(
        self,
        prior: MixturePrior,
        predictor: Predictor,
        start: nn.Module,
        gradient: nn.Module,
        base_rule: Rule,
        new_rule: Rule,
        **options: Any,
    ) -> None:
        rule = BaseAndNewRule(base_rule, new_rule)
        super().__init__(BaseAndNewPrior(prior), predictor, start, gradient, rule, **options)

    def begin(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int, hyperparameters: tuple[Tensor, ...]
    ) -> PosteriorParameters:
        """θ⁰ of the base classes, whose components are the ``hyperparameters``, then of ``rows`` rows of new classes."""
        new = super().begin(support_x, support_y, query_x, rows, hyperparameters)
        return PosteriorParameters(*(torch.cat(pair, dim=-2) for pair in zip(hyperparameters, new, strict=True)))

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
        known = known_components(self.prior.mixture, base_classes)
        parameters = self.read(self.unroll(support_x, support_y, query_x, query_y, way, hyperparameters=known))
        base, new = split_rows(parameters, base_classes.shape[-1])
        with task_plate(query_x, None):
            pyro.sample("base_weights", self.family.distribution(base))
            pyro.sample("weights", self.family.distribution(new))
        return parameters


class BaseAndNewRule(Rule):
    """Rows of base classes move by one rule, those of new classes by another.

    Args:
        base, new: the two rules.
    """

    def __init__(self, base: Rule, new: Rule) -> None:
        super().__init__()
        self.base, self.new = base, new

    def forward(self, index: int, parameters: PosteriorParameters, pull: Pull) -> PosteriorParameters:
        """θ after step ``index``; the last row of the prior's variances in ``pull`` is that of all new classes, see
        :class:`~models.tasks.base_and_new.BaseAndNewPrior`."""
        known = pull.variance.shape[-2] - 1
        parts = zip((self.base, self.new), split_rows(parameters, known), split_pull(pull, known), strict=True)
        moved = [rule(index, rows, own) for rule, rows, own in parts]
        return PosteriorParameters(*(torch.cat(pair, dim=-2) for pair in zip(*moved, strict=True)))

    def shrink(self, index: int, factor: float) -> None:
        for rule in (self.base, self.new):
            rule.shrink(index, factor)

    def stand_still(self) -> None:
        for rule in (self.base, self.new):
            rule.stand_still()


def split_rows(parameters: PosteriorParameters, known: int) -> tuple[PosteriorParameters, PosteriorParameters]:
    """θ of the first ``known`` rows, and of the others."""
    loc, log_scale = parameters
    return (
        PosteriorParameters(loc[..., :known, :], log_scale[..., :known, :]),
        PosteriorParameters(loc[..., known:, :], log_scale[..., known:, :]),
    )


def split_pull(pull: Pull, known: int) -> tuple[Pull, Pull]:
    """What pulls on the first ``known`` rows, and on the others."""

    def part(rows: slice) -> Pull:
        def cut(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor[..., rows, :]

        data, rate = (None if pair is None else (cut(pair[0]), cut(pair[1])) for pair in (pull.data, pull.rate))
        return Pull(data, rate, cut(pull.variance), pull.beta, cut(pull.narrowest))  # type: ignore[arg-type]

    return part(slice(known)), part(slice(known, None))
