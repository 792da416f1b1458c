"""Randomness that depends on counters, not on history: a resumed run draws what an unbroken one would have drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several counters, so that neighbouring counters give unrelated streams (SplitMix64)."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
