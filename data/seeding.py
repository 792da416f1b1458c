"""Randomness that depends on counters, not on history: a resumed run draws what an unbroken one would have drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

_PART: ContextVar[tuple[slice | None, int] | None] = ContextVar("part of a batch", default=None)


@contextmanager
def seeded(*parts: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block under its own seed and restore torch's random state after it.

    Args:
        parts: counters that name the block, such as ``(seed, epoch, batch)``.
        device: an accelerator whose generator is forked too.
    """
    device = torch.device(device)
    devices = [] if device.type == "cpu" else [device]
    # without an accelerator torch.manual_seed still notes, with a stack trace, how to seed it later: a millisecond each time
    seed = torch.manual_seed if has_accelerator() else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        seed(mix_seed(*parts))
        yield


@cache
def has_accelerator() -> bool:
    """Whether there is one; asked once, for torch looks for the driver's library again each time."""
    return torch.accelerator.is_available()


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several counters, so that neighbouring counters give unrelated streams (SplitMix64)."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


@contextmanager
def part_of_batch(rows: slice, total: int) -> Iterator[None]:
    """Inside the block this process has only ``rows`` of a batch of ``total``; see :func:`draw_part`."""
    token = _PART.set((rows, total))
    try:
        yield
    finally:
        _PART.reset(token)


@contextmanager
def shared_draws() -> Iterator[None]:
    """Inside the block all items of a batch take the same random numbers, so that none depends on what it is batched with."""
    token = _PART.set((None, 1))
    try:
        yield
    finally:
        _PART.reset(token)


def draw_part(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], dim: int) -> Tensor:
    """Random numbers of a batch along ``dim``: ``draw(shape)``, or in a process that has only some rows of the batch, its rows
    of what ``draw`` gives for the whole batch, so that several processes use the numbers that one would have used.

    Args:
        draw: such as ``torch.randn``.
        shape: of our own rows.
    """
    part = _PART.get()
    if part is None:
        return draw(shape)
    rows, total = part
    whole = list(shape)
    whole[dim] = total
    if rows is None:  # one item's, for all
        return draw(whole).expand(*shape)
    return draw(whole).narrow(dim, rows.start, rows.stop - rows.start)
