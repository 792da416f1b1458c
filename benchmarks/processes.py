"""What several processes end with beside one, and how fast: ``python -m benchmarks.processes --processes 1 2 4``.

The same short run of ``svi_sib`` in double precision, by ``torchrun`` with so many processes on this machine: the largest
difference between any two parameters that were trained (relative, where a parameter is above 1), and the seconds of each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

RUN = ["--device", "cpu", "--precision", "64-true", "--progress", "false", "--seed", "0", "--generations", "1", "--epochs", "2"]
RUN += ["--predictor", "distance", "--beta", "0.1", "--validations", "2", "--validation-tasks", "150", "--test-tasks", "50"]


def train(out: Path, processes: int, options: list[str]) -> None:
    """A run into ``out``, with other ``options`` beside the usual ones."""
    words = [sys.executable, "-m"]
    if processes > 1:
        words += ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    words += ["inference.svi_sib", *RUN, *options, "--out", str(out)]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def furthest(one: Path, two: Path) -> float:
    """The largest difference between parameters of two runs, relative where they are above 1."""
    gaps = [0.0]
    for file in (one / "checkpoints").glob("*.safetensors"):
        first, second = (load_file(out / "checkpoints" / file.name) for out in (one, two))
        for name, value in first.items():
            gaps.append(((value - second[name]).abs() / value.abs().clamp_min(1)).double().max().item())
    return max(gaps)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "benchmarks.processes", description=__doc__.partition("\n")[0], epilog="All other options are those of svi_sib."
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tasks", default="1600", help="to meta-train on")
    parser.add_argument("--batch", default="64", help="tasks a step")
    options, rest = parser.parse_known_args()
    given = ["--tasks", options.tasks, "--batch", options.batch, *rest]
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / str(options.processes[0])
        for number in options.processes:
            out = Path(scratch) / str(number)
            train(out, number, given)
            seconds = json.loads((out / "metrics.json").read_text())["seconds"]
            said = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
            print(f"{number} processes: largest difference {furthest(first, out):.1e}; {said}", flush=True)


if __name__ == "__main__":
    main()
