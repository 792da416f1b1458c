"""What a posterior says of items whose classes are asked for: numbers of each item, and of each of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

LEVEL = 0.9
"""Of credible intervals: 90 % of the posterior's draws give a probability inside."""


@dataclass(frozen=True)
class ClassPredictions:
    """Predicted classes of n items, on the CPU.

    Attributes:
        probabilities: ``[n, classes]``, the posterior predictive: averaged over draws.
        lower, upper: ``[n, classes]``, equal-tailed 90 % intervals of p(class given item, weights) under the posterior;
            equal to ``probabilities`` where the weights are points.
        entropy: ``[n]``, of ``probabilities``, nats: all that is uncertain of an item's class.
        mutual_information: ``[n]``, between class and weights, nats: the part of ``entropy`` that more labels would take away.
            Source: Houlsby et al. 2011, equation 2.
        class_names: a name for each class; their numbers where nobody named them.
    """

    probabilities: Tensor
    lower: Tensor
    upper: Tensor
    entropy: Tensor
    mutual_information: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> Tensor:
        """The most probable class of each item, ``[n]`` int64."""
        return self.probabilities.argmax(-1)

    @property
    def names(self) -> list[str]:
        """The most probable class of each item by name."""
        return [self.class_names[i] for i in self.labels.tolist()]

    @classmethod
    def from_draws(cls, draws: Tensor, class_names: Sequence[str] = ()) -> ClassPredictions:
        """From p(class given item, w_s) of posterior draws: ``[draws, n, classes]``."""
        draws = draws.detach().cpu()
        draws = draws.to(torch.promote_types(draws.dtype, torch.float32))  # a quantile of lower precision is none of torch's
        mean = draws.mean(0)
        tail = (1 - LEVEL) / 2
        lower, upper = draws.quantile(torch.tensor([tail, 1 - tail], dtype=draws.dtype), dim=0)
        entropy = torch.special.entr(mean).sum(-1)
        information = (entropy - torch.special.entr(draws).sum(-1).mean(0)).clamp_min(0)
        names = (*class_names, *map(str, range(len(class_names), mean.shape[-1])))  # a class that nobody named has its number
        return cls(mean, lower, upper, entropy, information, names)

    @classmethod
    def concatenate(cls, parts: Sequence[ClassPredictions]) -> ClassPredictions:
        """Predictions of the same classes for one batch of items after another, as one."""
        numbers = [field.name for field in fields(cls) if field.name != "class_names"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in numbers}
        return cls(**joined, class_names=parts[0].class_names)
