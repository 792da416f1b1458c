"""Interrupt runs at random moments and resume them: do they end as an unbroken one, and with the exit codes that are promised?

    python -m benchmarks.chaos --commands svi_bnn --kills 10 --terminations 4 --interrupts 4 --full-disks 2 --seed 0

For each command a tiny run is left alone first. Every trial starts the same run anew, strikes between the moment that it has a
folder and its end, and resumes it until it ends: SIGKILL, SIGTERM (exit code 143), SIGINT (130), or a disk that takes no more
(2): a small ``tmpfs`` where it may be mounted, else a limit on the size of files. Half of the trials have their temporary
folder on another file system than the run. A trial is good where each interruption but SIGKILL has said one line and ended
with its code, all weights and results are, bit for bit, those of the run that was left alone, and no temporary file is left.
The exit code is 0 where all are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from inference.runs.folder import TEMPORARY, RunFolder
from inference.runs.tensors import load_tensors

COMMON = ["--device", "cpu", "--progress", "false"]
TINY = {
    "svi_sib": "--image-size 16 --epochs 2 --tasks 400 --validations 10 --validation-tasks 40 --test-tasks 40 --beta 0.1 "
    "--protocols standard",
    "svi_bnn": "--data curve --hidden 6 --epochs 48 --rounds 3 --samples 8 --algorithms vanilla,online --beta 1",
    "svi_vid": "--image-size 16 --teacher-epochs 2 --epochs 4 --per-class 10 --methods student,vid --runs 1",
}
"""Options of a run of each command that ends soon."""
CODES = {"kill": -signal.SIGKILL, "terminate": 128 + signal.SIGTERM, "interrupt": 128 + signal.SIGINT, "full disk": 2}
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
PATIENCE = 600
"""Seconds that a run may take."""


def start(command: str, words: list[str], scratch: Path, limit: int | None = None) -> subprocess.Popen:
    """The process of a command that writes its temporary files to ``scratch``, and no file beyond ``limit`` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [sys.executable, "-m", f"inference.{command}", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch), "SIBYL_CACHE": str(scratch / "cache")}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)


def has_begun(process: subprocess.Popen, out: Path) -> bool:
    """Wait for the run folder; false where the process ends without."""
    while process.poll() is None and not (out / "config.yaml").exists():
        time.sleep(0.01)
    return process.poll() is None


def numbers(out: Path) -> dict[str, object]:
    """Results and weights of a finished run; the time that a fit took is none of them."""
    results = json.loads(RunFolder(out).metrics.read_text())["results"]
    found: dict[str, object] = {}
    for file in (out / "checkpoints").glob("*.safetensors"):  # the order of a file's metadata is not fixed, its tensors are
        found |= {f"{file.name}/{name}": value.numpy().tobytes() for name, value in load_tensors(file)[0].items()}
    return found | {"results": [{name: row[name] for name in row if name != "seconds"} for row in results]}


class Trials:
    """Trials of one command.

    Args:
        command: svi_sib, svi_bnn or svi_vid.
        place: where runs go.
        seed: of the moments.
    """

    def __init__(self, command: str, place: Path, seed: int) -> None:
        self.command, self.place, self.random = command, place, random.Random(f"{command}{seed}")
        self.words = [*TINY[command].split(), *COMMON]
        self.scratch = [Path(tempfile.mkdtemp(dir=place))]
        with suppress(OSError):
            self.scratch.append(Path(tempfile.mkdtemp(dir="/dev/shm")))
        out = place / "whole"
        process = start(command, [*self.words, "--out", str(out)], self.scratch[0])
        has_begun(process, out)
        begun = time.monotonic()
        _, said = process.communicate(timeout=PATIENCE)
        if process.returncode != 0:
            raise SystemExit(f"{command} does not run: {said}")
        self.seconds, self.whole = time.monotonic() - begun, numbers(out)
        self.bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        self.largest = max(file.stat().st_size for file in out.rglob("*") if file.is_file())

    def run(self, kind: str, number: int) -> str:
        """One trial; ``good``, or what is wrong."""
        folder = self.place / f"{kind.replace(' ', '-')}{number}"
        folder.mkdir()
        scratch, out = self.scratch[number % len(self.scratch)], folder / "run"
        try:
            found = self.strike(kind, folder, out, scratch)
            return found or self.resume(out, scratch)
        finally:
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)

    def strike(self, kind: str, folder: Path, out: Path, scratch: Path) -> str:
        """Start a run and interrupt it; what is wrong with how it ends, if anything."""
        limit = None
        if kind == "full disk" and not mount(folder, size := self.random.randrange(4096, self.bytes)):
            limit = size % self.largest + 1
        process = start(self.command, [*self.words, "--out", str(out)], scratch, limit)
        if kind in SIGNALS and has_begun(process, out):
            time.sleep(self.random.uniform(0, self.seconds))
            process.send_signal(SIGNALS[kind])
        _, said = process.communicate(timeout=PATIENCE)
        if kind == "full disk":
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], capture_output=True, check=False)
        if process.returncode == 0:
            return ""  # it was faster
        if process.returncode != CODES[kind]:
            return f"exit code {process.returncode}: {said.strip()[-300:]}"
        return "" if kind == "kill" or said.count("\n") == 1 else f"not one line: {said.strip()[-300:]}"

    def resume(self, out: Path, scratch: Path) -> str:
        """Resume the run, or start it where there is none; what is wrong with how it ends, or ``good``."""
        begun = (out / "config.yaml").exists()
        words = ["--resume", str(out)] if begun else [*self.words, "--out", str(out)]
        if not (out / "metrics.json").exists() or begun:
            process = start(self.command, words, scratch)
            _, said = process.communicate(timeout=PATIENCE)
            if process.returncode != 0:
                return f"resumed, exit code {process.returncode}: {said.strip()[-300:]}"
        if left := [file.name for file in out.rglob(".*") if TEMPORARY.fullmatch(file.name)]:
            return f"left behind: {left[0]}"
        now = numbers(out)
        if changed := [name for name in self.whole if now.get(name) != self.whole[name]]:
            return f"not bit-equal: {changed[0]}"
        return "good"


def mount(folder: Path, size: int) -> bool:
    """Mount a ``tmpfs`` of ``size`` bytes on ``folder``, where that is allowed."""
    with suppress(OSError):
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


def main() -> int:
    """Run all trials, print each and a table; 0 where all are good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default="svi_sib,svi_bnn,svi_vid")
    for name in ("kills", "terminations", "interrupts", "full-disks"):
        parser.add_argument(f"--{name}", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the runs, on a disk")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts = dict(zip(CODES, (given.kills, given.terminations, given.interrupts, given.full_disks), strict=True))
    table: Counter[tuple[str, str, bool]] = Counter()
    for command in given.commands.split(","):
        with tempfile.TemporaryDirectory(dir=given.out) as place:
            trials = Trials(command, Path(place), given.seed)
            print(f"{command}: {trials.seconds:.1f} s when left alone", flush=True)
            for kind, count in counts.items():
                for number in range(count):
                    found = trials.run(kind, number)
                    table[command, kind, found == "good"] += 1
                    print(f"{command} {kind} {number}: {found}", flush=True)
            for scratch in trials.scratch:
                shutil.rmtree(scratch, ignore_errors=True)
    print("\n| command | " + " | ".join(counts) + " |\n|---" + "|---" * len(counts) + "|")
    for command in given.commands.split(","):
        print(f"| {command} | " + " | ".join(f"{table[command, kind, True]} of {n} good" for kind, n in counts.items()) + " |")
    return int(any(not good for *_, good in table))


if __name__ == "__main__":
    sys.exit(main())
