"""The cost of a student's training step by method, on the same pairs of layers: WRN-40-2 to WRN-16-1 on random images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.timing import Row, interleave
from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from inference.runs.training import spare_steps
from inference.vid.methods import Method
from models.distillation.model import DistillationModel
from models.networks.classifiers import build_network
from models.networks.layers import features

METHODS = ("fitnet", "student", "kd", "at", "nst", "vid")


def make_step(method: str, teacher: nn.Module, x: Tensor, y: Tensor) -> Callable[[bool], None]:
    """A training step, which reads the teacher's layers anew where asked to."""
    student = build_network("wrn-16-1", tuple(x.shape[1:]), 10)
    pairs = Method.parse(method).pairs(teacher, student, x, 1.0)
    model = DistillationModel(student, teacher, pairs, x)
    objective = RateDistortionELBO()(model, EmptyGuide()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3)
    kept = features(teacher, x, model.teacher_layers) if pairs else None

    def step(with_teacher: bool) -> None:
        taught = features(teacher, x, model.teacher_layers) if pairs and with_teacher else kept
        optimizer.zero_grad()
        (objective(x, y, taught) / len(x)).backward()
        optimizer.step()

    return step


def steps(options: argparse.Namespace) -> list[Row]:
    """``vid-step``: beside FitNet's, with the teacher's forward pass and without it, 32×32 images."""
    torch.manual_seed(0)
    spare_steps()
    rows = []
    for batch in options.batch or (64,):
        x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        y = torch.randint(10, (batch,))
        teacher = build_network("wrn-40-2", tuple(x.shape[1:]), 10)
        teacher = teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made = {method: make_step(method, teacher, x, y) for method in METHODS}
        for with_teacher in (True, False):
            programs = {method: partial(step, with_teacher) for method, step in made.items()}
            group = f"batch {batch}, {'with' if with_teacher else 'without'} the teacher's pass"
            rounds = max(5, options.rounds // 4)
            rows += interleave("vid-step", group, programs, rounds=rounds, work=batch, clock=options.clock)
    return rows
