"""Tasks that are not mutually exclusive: a class has the same label in every task that it is in."""

from __future__ import annotations

import torch
from torch import Tensor

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.items import LabelledItems


class FixedLabelSampler(EpisodeSampler):
    """Draws tasks as :class:`~data.episodes.EpisodeSampler` does, but that classes are dealt out to the labels once: a task has
    one class of those of each label.

    So one network can be right on all training tasks without reading a support. Source: Yin et al. 2020, "Meta-learning without
    memorization", whose experiments call such tasks non-mutually-exclusive.

    Args:
        source, spec, split: see :class:`~data.episodes.EpisodeSampler`. The ``partition`` of the spec is the seed of the
            dealing, 0 where it has none.

    Attributes:
        label_of: ``[classes]`` int64, the label of each class. Labels have equally many classes, or one more or less.

    Raises:
        UserError: as there, or tasks within alphabets are asked for.
    """

    def __init__(self, source: LabelledItems, spec: TaskSpec, *, split: str = "data") -> None:
        if spec.within_alphabet:
            raise UserError("classes with fixed labels are of all alphabets: leave out `within_alphabet`")
        super().__init__(source, spec, split=split)
        generator = torch.Generator().manual_seed(spec.partition or 0)
        self.label_of = torch.randperm(source.num_classes, generator=generator) % spec.way

    def _classes(self, tasks: int, generator: torch.Generator) -> Tensor:
        """``[tasks, way]``: of each label's classes one, all as likely."""
        keys = torch.rand(tasks, 1, len(self.label_of), generator=generator)
        own = self.label_of == torch.arange(self.spec.way)[:, None]  # [way, classes]
        return keys.masked_fill(~own, -1.0).argmax(-1)
