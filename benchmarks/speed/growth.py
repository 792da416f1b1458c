"""How time and memory grow with K, way, shot, queries, features, batch and draws."""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.speed.sib import DEFAULT, bank_of, ours, training_step
from benchmarks.speed.timing import Row, interleave
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.items import LabelledItems
from inference.evaluation.evaluate import evaluate
from inference.evaluation.figures import PlainNumbers
from inference.evaluation.style import STYLE, headline, look

NAMES = {
    "K": "steps K of the guide",
    "way": "classes (and queries with them)",
    "shot": "support items a class",
    "queries": "queries a class",
    "D": "features D (cosine)",
    "batch": "tasks a step",
    "draws": "posterior draws (evaluation)",
}
USUAL = {"K": 3, "way": 5, "shot": 1, "queries": 15, "D": 256, "batch": 64, "draws": 32}
SIZES: dict[str, Sequence[int]] = {
    "K": (1, 2, 4, 8),
    "way": (5, 10, 20, 40),
    "shot": (1, 4, 16, 64),
    "queries": (5, 10, 20, 40, 80),
    "D": (64, 128, 256, 512, 1024),
    "batch": (16, 32, 64, 128, 256),
    "draws": (8, 32, 128, 512),
}
"""Of each quantity, while the others are as :data:`USUAL`: steps of the guide, classes, support and query items a class,
features, tasks a step, and posterior draws of the evaluation of 50 tasks."""


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
    """``growth``: time and memory of a training step against K, way, shot, queries, D and batch, and of evaluation against
    draws, with the exponents of the power laws fitted to them; ``--picture`` draws them."""
    bank, rows = bank_of(options.features), []
    for quantity, sizes in SIZES.items():
        programs = {f"{quantity} = {size}": program(bank, quantity, size, options.device) for size in sizes}
        memory = [peak_memory(one) for one in programs.values()]
        found = interleave("growth", f"against {quantity}", programs, rounds=max(2, options.rounds // 20), clock=options.clock)
        measured = zip(found, sizes, memory, strict=True)
        found = [replace(row, extra={"size": float(size), "MiB": held}) for row, size, held in measured]
        rows += [*found[:-1], replace(found[-1], extra={**found[-1].extra, **exponents(found)})]
    if options.picture:
        picture(rows, options.picture)
    return rows


def program(bank: LabelledItems, quantity: str, size: int, device: str) -> Callable:
    """A training step, or evaluation, on a ``device``, with one ``quantity`` of this ``size`` and the others as usual."""
    chosen = USUAL | {quantity: size}
    if quantity == "D":
        bank = bank_of(None, width=size)
    objective, items = ours(bank, chosen["K"], device=device, **DEFAULT | ({"predictor": "cosine"} if quantity == "D" else {}))
    sampler = EpisodeSampler(items, TaskSpec(chosen["way"], chosen["shot"], chosen["queries"]))
    if quantity == "draws":
        return lambda: evaluate(objective.model, objective.guide, sampler, tasks=50, seed=1, num_samples=size)
    return training_step(objective, sampler, chosen["batch"])


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """The exponents of the power laws that fit time and memory of these ``rows`` best, by least squares of logarithms, and
    those of the last two sizes alone."""
    sizes = np.log([row.extra["size"] for row in rows])
    found = {}
    for name, values in (("time", [row.seconds for row in rows]), ("memory", [max(row.extra["MiB"], 0.1) for row in rows])):
        logs = np.log(values)
        found[f"{name} ∝ n^"] = float(np.polyfit(sizes, logs, 1)[0])
        found[f"{name} at the end ∝ n^"] = float((logs[-1] - logs[-2]) / (sizes[-1] - sizes[-2]))
    return found


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draw time and memory of these ``rows`` against the sizes, each with its exponent, into ``path``."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
        for number, quantity in enumerate(SIZES):
            own, (colour, marker, dash) = [row for row in rows if row.group == f"against {quantity}"], look(number)
            sizes = [row.extra["size"] for row in own]
            values = [row.seconds * 1e3 for row in own], [row.extra["MiB"] for row in own]
            for axis, ys, name in zip(axes, values, ("time", "memory"), strict=True):
                label = f"{own[-1].extra[f'{name} ∝ n^']:.2f}  {NAMES[quantity]}"
                axis.plot(sizes, ys, color=colour, marker=marker, linestyle=dash, label=label)
        for axis, label in zip(axes, ("time (ms)", "memory, at most (MiB)"), strict=True):
            axis.set(xscale="log", yscale="log", xlabel="n, how many of them", ylabel=label)
            for each in (axis.xaxis, axis.yaxis):
                each.set_major_formatter(PlainNumbers())
            axis.legend(title="exponent of n", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        headline(
            figure,
            "How do time and memory grow?",
            f"SIB's training step ({USUAL['batch']} tasks where they are not varied); evaluation of 50 tasks",
        )
        figure.savefig(path)
        plt.close(figure)
