"""How memory and time grow with K, way, draws, batch."""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.speed.sib import DEFAULT, bank_of, ours, training_step
from benchmarks.speed.timing import Row, interleave
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from inference.evaluation.evaluate import evaluate

SIZES: dict[str, Sequence[int]] = {
    "K": (1, 2, 4, 8),
    "way": (5, 10, 20, 40),
    "batch": (16, 64, 256, 1024),
    "draws": (8, 32, 128, 512),
}


def peak_memory(program: Callable) -> float:
    """MiB that the process (or the GPU) holds at most while a program runs, beyond what it held before. Linux alone.

    Raises:
        UserError: another system.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        program()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != "linux":
        raise UserError("what a process holds at most is read from /proc: run this case on Linux")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    program()
    return (status("VmHWM") - before) / 2**10


def status(name: str) -> float:
    """A number of kB in the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


def growth(options: argparse.Namespace) -> list[Row]:
    """``growth``: memory and time of a training step against K, way and batch, and of evaluation on 50 tasks against draws,
    with the exponents between each two sizes."""
    bank, rows = bank_of(options.features), []
    for quantity, sizes in SIZES.items():
        programs = {f"{quantity} = {size}": program(bank, quantity, size) for size in sizes}
        memory = {name: peak_memory(one) for name, one in programs.items()}
        found = interleave("growth", f"against {quantity}", programs, rounds=5, clock=options.clock)
        exponents = {}
        for before, after, small, large in zip(found, found[1:], sizes, sizes[1:], strict=False):
            times, sizes_of = after.seconds / before.seconds, memory[after.name] / max(memory[before.name], 1e-9)
            logs = {"time ∝ size^": times, "memory ∝ size^": max(sizes_of, 1e-9)}
            exponents[after.name] = {k: math.log(v) / math.log(large / small) for k, v in logs.items()}
        rows += [replace(row, extra={"MiB": memory[row.name], **exponents.get(row.name, {})}) for row in found]
    return rows


def program(bank, quantity: str, size: int) -> Callable:
    """A training step, or evaluation, with one ``quantity`` of this ``size`` and the others as usual."""
    steps, way = (size if quantity == "K" else 3), (size if quantity == "way" else 5)
    objective, items = ours(bank, steps, **DEFAULT)
    sampler = EpisodeSampler(items, TaskSpec(way=way))
    if quantity == "draws":
        return lambda: evaluate(objective.model, objective.guide, sampler, tasks=50, seed=1, num_samples=size)
    return training_step(objective, sampler, size if quantity == "batch" else 16)
