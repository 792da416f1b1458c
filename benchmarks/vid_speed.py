"""Cost of a student's training step by method, on the same pairs of layers: WRN-40-2 to WRN-16-1 on random images.

``python benchmarks/vid_speed.py [--batch 64] [--size 32] [--threads 2] [--steps 15]``: medians of interleaved steps, with the
teacher's forward pass and without it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from inference.runs.training import keep_freed_memory
from inference.vid.methods import Method
from models.distillation.model import DistillationModel
from models.networks.classifiers import build_network
from models.networks.layers import features

METHODS = ("student", "kd", "at", "nst", "fitnet", "vid")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 64), ("size", 32), ("threads", 2), ("steps", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    x = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch,))
    teacher = build_network("wrn-40-2", tuple(x.shape[1:]), 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = {method: make_step(method, teacher, x, y) for method in METHODS}
    seconds: dict[tuple[str, bool], list[float]] = {(method, flag): [] for method in METHODS for flag in (True, False)}
    for _ in range(options.steps):
        for method, flag in seconds:
            start = time.perf_counter()
            steps[method](flag)
            seconds[method, flag].append(time.perf_counter() - start)
    medians = {key: sorted(values)[len(values) // 2] for key, values in seconds.items()}
    for method in METHODS:
        cells = [f"{1e3 * medians[method, flag]:7.1f} ms" for flag in (True, False)]
        cells += [f"{medians[method, flag] / medians['fitnet', flag]:.2f}" for flag in (True, False)]
        print(f"{method:8s} {cells[0]} ({cells[2]} × FitNet)   without the teacher's pass {cells[1]} ({cells[3]} × FitNet)")


if __name__ == "__main__":
    main()
