"""How near steps come to what this machine can do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.speed.bnn import SIZES, deterministic
from benchmarks.speed.bnn import ours as bnn_objective
from benchmarks.speed.sib import DEFAULT, ITS_SETTING, bank_of, evaluate_all, ours, training_step
from benchmarks.speed.timing import Row, interleave
from data.episodes import EpisodeSampler, TaskSpec

SIDES = {"cpu": 1024, "cuda": 8192}  # of the plain product
COPIED = {"cpu": 2**24, "cuda": 2**29}  # floats of the plain copy, far more than the caches hold


class Count(TorchDispatchMode):
    """Counts what operators compute and move.

    Attributes:
        flops: floating-point operations of matrix products and convolutions, as PyTorch counts them.
        bytes: that are read and written, each argument and result once; views move nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        if not func.is_view:
            tensors = {id(t): t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}
            self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        return result


def counted(program: Callable) -> tuple[float, float]:
    """Floating-point operations of one call, and bytes that it moves."""
    with Count() as count:
        program()
    return count.flops, count.bytes


def roofline(options: argparse.Namespace) -> list[Row]:
    """``roofline``: FLOP/s and bytes/s of steps and of evaluation beside those of a plain product and a plain copy.

    No program can take less time than its operations at the product's speed, nor than its bytes at the copy's, so far as they
    come from memory and not from caches: ``bound`` is the share of its time that the larger of the two explains.
    """
    device, side = options.device, SIDES[options.device]
    square, long = torch.randn(side, side, device=device), torch.randn(COPIED[device], device=device)
    out, target = torch.empty_like(square), torch.empty_like(long)
    programs: dict[str, Callable] = {
        "plain product": lambda: torch.mm(square, square, out=out),
        "plain copy": lambda: target.copy_(long),
    }
    bank, kernels = bank_of(options.features), {}  # what is counted launches its kernels one by one
    for name, chosen in (("its setting", ITS_SETTING), ("default", DEFAULT)):
        objective, items = ours(bank, device=device, **chosen)
        sampler = EpisodeSampler(items, TaskSpec())
        for batch in options.batch or (16, 256):
            called = f"SIB step, {name}, {batch} tasks"
            programs[called] = training_step(objective, sampler, batch)
            kernels[called] = training_step(objective, sampler, batch, graphs=False)
        programs[f"SIB evaluation, {name}, 50 tasks"] = evaluate_all(objective, sampler, 50)
    with torch.device(device):  # where networks and guides are made
        x, y = torch.randn(512, SIZES[0]), torch.randint(SIZES[-1], (512,))
        programs |= {"deterministic step, batch 512": deterministic(x, y).step()}
        programs["β-BNN step, batch 512"] = bnn_objective(x, y, 1).step()
        kernels["β-BNN step, batch 512"] = bnn_objective(x, y, 1, graphs=False).step()
    rows = interleave("roofline", "this machine", programs, rounds=max(5, options.rounds // 4), clock=options.clock)
    numbers = {name: counted(program) for name, program in (programs | kernels).items()}
    best_flops, best_bytes = 2 * side**3 / rows[0].seconds, 8 * COPIED[device] / rows[1].seconds
    found = []
    for row in rows:
        flops, moved = numbers[row.name]
        bound = max(flops / best_flops, moved / best_bytes) / row.seconds
        extra = {"GFLOP/s": flops / row.seconds / 1e9, "GB/s": moved / row.seconds / 1e9, "bound": bound}
        found.append(replace(row, extra=extra))
    return found
