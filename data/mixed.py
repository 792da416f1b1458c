"""Batches of tasks of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.episodes import Episode
from data.seeding import mix_seed


class MixedSampler:
    """Draws batches to which each of several samplers gives its share: task i comes from sampler i mod their number.

    Args:
        samplers: of tasks with equal way, shot and queries, such as balanced and imbalanced ones.
    """

    def __init__(self, samplers: Sequence[Any]) -> None:
        self.samplers = tuple(samplers)

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """``tasks`` tasks as one :class:`~data.episodes.Episode`; equal seeds give equal tasks."""
        kinds = len(self.samplers)
        each = -(-tasks // kinds)
        parts = [sampler.sample(each, seed=mix_seed(seed, kind)) for kind, sampler in enumerate(self.samplers)]

        def alternating(name: str) -> Tensor:
            return torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)[:tasks]

        support_x, support_y, query_x, query_y = map(alternating, ("support_x", "support_y", "query_x", "query_y"))
        return Episode(support_x, support_y, query_x, query_y, parts[0].way)
