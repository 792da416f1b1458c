"""Randomness that depends on counters, not on history: a resumed run draws what an unbroken one would have drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.episodes import mix_seed


@contextmanager
def seeded(*parts: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block under its own seed and restore torch's random state after it.

    Args:
        parts: counters that name the block, such as ``(seed, epoch, batch)``.
        device: an accelerator whose generator is forked too.
    """
    device = torch.device(device)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(mix_seed(*parts))
        yield
