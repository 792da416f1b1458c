"""Interrupt runs at random moments and resume them: do they end as an unbroken one, and with the exit codes that are promised?

    python -m benchmarks.chaos --commands svi_bnn --kills 10 --terminations 4 --interrupts 4 --full-disks 2 --seed 0

For each command a tiny run, on the small images of :mod:`benchmarks.fuzzing.ground`, is left alone first. Every trial starts
the same run anew, strikes it ``--strikes`` times between the moment that it has a folder and its end, resumes it each time, and
lets it end: SIGKILL, SIGTERM (exit code 143), SIGINT (130), or, once, a disk that takes no more (2): a small ``tmpfs`` where it
may be mounted, else a limit on the size of files. Moments are of the run's own processor time, so that each stage is struck as
often on a busy machine. Half of the trials have their temporary folder on another file system than the run. A run is a copy of
this process, which has everything imported; one in ``--apart`` is a process as a shell starts it. A trial is good where each
interruption but SIGKILL has said one line and ended with its code, all weights and results are, bit for bit, those of the run
that was left alone, and no temporary file is left; the folder of another is kept, and named. The exit code is 0 where all are.
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
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a copy of a process with threads may wait for them for ever

import torch

from benchmarks.copies import in_a_copy, run_main
from benchmarks.fuzzing.ground import draw_images
from inference.runs.files import TEMPORARY
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors

COMMON = ["--device", "cpu", "--progress", "false"]
TINY = {
    "svi_sib": "--data folder --root {images} --image-size 16 --backbone conv4-8 --epochs 24 --way 3 --queries 2 --train-way 3 "
    "--train-shot 1-2 --tasks 400 --validations 10 --validation-tasks 20 --test-tasks 20 --beta 0.1 --protocols standard",
    "svi_bnn": "--data curve --hidden 6 --epochs 48 --rounds 3 --samples 8 --algorithms vanilla,online --beta 1",
    "svi_vid": "--data folder --root {pairs} --image-size 16 --teacher conv4-8 --student conv4-4 --epochs 30 --updates 120 "
    "--batch 8 --per-class 5 --methods student,vid --runs 1 --cache {cache}",
    "svi_meta": "--data folder --root {images} --image-size 16 --backbone conv4-8 --epochs 12 --way 3 --queries 2 "
    "--train-shot 1-2 --methods prototypical,anil,r2d2:posterior=full --train-features all --network-tasks 60 --tasks 400 "
    "--validations 5 --validation-tasks 20 --test-tasks 20 --protocols standard",
}
"""Options of a run of each command that ends soon."""
CODES = {"kill": -signal.SIGKILL, "terminate": 128 + signal.SIGTERM, "interrupt": 128 + signal.SIGINT, "full disk": 2}
LATE_IMPORTS = ("arviz", "h5netcdf", "matplotlib.backends.backend_agg")
"""What commands import when they need it."""
TIMES = ("seconds", "adapt_ms", "tasks_per_second")
"""What no two runs have alike."""
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
PATIENCE = 600
"""Seconds that a run may take."""


class Process:
    """A run of a command.

    Args:
        command: a module below ``inference``.
        words: of its command line.
        scratch: where it writes its temporary files.
        limit: bytes beyond which no file grows.
        apart: whether it is a process as a shell starts it, or a copy of this one.
    """

    def __init__(self, command: str, words: list[str], scratch: Path, limit: int | None = None, *, apart: bool = False) -> None:
        self.out, self.err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 (they live as long as this object)
        self.status: int | None = None
        self.used = 0.0
        """Seconds of processor time, once it has ended."""

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        if apart:
            env = os.environ | {"TMPDIR": str(scratch)}
            line = [sys.executable, "-m", f"inference.{command}", *words]
            self.pid = subprocess.Popen(line, env=env, stdout=self.out, stderr=self.err, preexec_fn=prepare).pid
            return

        def work() -> None:
            for number, file in ((1, self.out), (2, self.err)):
                os.dup2(file.fileno(), number)
            prepare()
            os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None
            run_main(command, words)

        self.pid = in_a_copy(work)

    def poll(self) -> int | None:
        """The exit status, negative where a signal ended it; ``None`` while it works."""
        if self.status is None and (found := os.wait4(self.pid, os.WNOHANG))[0]:
            self.status, self.used = os.waitstatus_to_exitcode(found[1]), found[2].ru_utime + found[2].ru_stime
        return self.status

    def clock(self) -> float:
        """Seconds of processor time so far; of the wall's where the system has no ``/proc``."""
        if self.poll() is not None:
            return self.used
        try:
            times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            return time.monotonic()
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def wait(self) -> tuple[int, str]:
        """Exit status and what was said on standard error, once it has ended."""
        end = time.monotonic() + PATIENCE
        while self.poll() is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        self.err.seek(0)
        return self.poll() or 0, self.err.read()


def has_begun(process: Process, out: Path) -> bool:
    """Wait for the run folder; false where the process ends without."""
    while process.poll() is None and not (out / "config.yaml").exists():
        time.sleep(0.002)
    return process.poll() is None


def numbers(out: Path) -> dict[str, object]:
    """Results and weights of a finished run; the time that a fit took is none of them."""
    results = json.loads(RunFolder(out).metrics.read_text())["results"]
    found: dict[str, object] = {}
    for file in (out / "checkpoints").glob("*.safetensors"):  # the order of a file's metadata is not fixed, its tensors are
        found |= {f"{file.name}/{name}": value.numpy().tobytes() for name, value in load_tensors(file)[0].items()}
    return found | {"results": [{name: row[name] for name in row if name not in TIMES} for row in results]}


class Trials:
    """Trials of one command.

    Args:
        command: svi_sib, svi_bnn, svi_vid or svi_meta.
        place: where runs go.
        seed: of the moments.
        apart: one run in so many is a process as a shell starts it.
        kept: where the folder of a trial that is not good goes; ``None`` for the one of temporary files.
        also: options of the run, behind those of :data:`TINY`.
    """

    def __init__(
        self, command: str, place: Path, seed: int, apart: int, kept: Path | None = None, also: Sequence[str] = ()
    ) -> None:
        self.command, self.place, self.random, self.apart = command, place, random.Random(f"{command}{seed}"), apart
        self.kept, self.also = kept, also
        self.scratch = [Path(tempfile.mkdtemp(dir=place))]
        with suppress(OSError):
            self.scratch.append(Path(tempfile.mkdtemp(dir="/dev/shm")))
        draw_images(place)
        out = place / "whole"
        process = Process(command, self.words(place), self.scratch[0])
        has_begun(process, out)
        self.start = process.clock()
        status, said = process.wait()
        if status != 0:
            raise SystemExit(f"{command} does not run: {said}")
        self.seconds, self.whole = process.clock() - self.start, numbers(out)
        self.stages = RunFolder(out).seconds()
        self.struck: Counter[str] = Counter()
        self.bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        self.largest = max(file.stat().st_size for file in out.rglob("*") if file.is_file())

    def words(self, folder: Path, out: str = "whole") -> list[str]:
        """The command line of a run that writes to ``folder`` alone."""
        places = {"images": self.place / "images", "pairs": self.place / "pairs", "cache": folder / "cache"}
        return [*TINY[self.command].format(**places).split(), *self.also, *COMMON, "--out", str(folder / out)]

    def run(self, kind: str, number: int, strikes: int) -> tuple[str, int]:
        """One trial; ``good``, or what is wrong, and how often the run was struck, ``strikes`` times at most."""
        folder = self.place / f"{kind.replace(' ', '-')}{number}"
        folder.mkdir()
        scratch, apart = self.scratch[number % len(self.scratch)], number % self.apart == self.apart - 1
        count, found = 0, ""
        try:
            for left in range(strikes, 0, -1):
                struck, found = self.strike(kind, folder, scratch, self.wait(folder, left), apart)
                count += struck
                if found or not struck:
                    break
            found = found or self.resume(folder, scratch, apart)
            if found != "good":
                kept = Path(tempfile.mkdtemp(prefix=f"{self.command}-{folder.name}-", dir=self.kept))
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                found += f" (see {kept})"
            return found, count
        finally:
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)

    def wait(self, folder: Path, left: int) -> float:
        """Seconds until the run in ``folder`` is struck: to the first of ``left`` moments, evenly spread over all that it has
        not finished, so that no stage is struck less often because work before it was lost."""
        run = RunFolder(folder / "run")
        rest = sum(seconds for stage, seconds in self.stages.items() if stage not in run.seconds()) / sum(self.stages.values())
        first = min(self.random.uniform(0, rest * self.seconds) for _ in range(left))
        return first + (self.start if run.config.exists() else 0)  # what a run does before it has a folder

    def strike(self, kind: str, folder: Path, scratch: Path, wait: float, apart: bool) -> tuple[bool, str]:
        """Start or resume a run and interrupt it after ``wait`` seconds; whether it has not ended before that, and what is
        wrong with how it ends, if anything."""
        limit, run = None, RunFolder(folder / "run")
        if kind == "full disk" and not mount(folder, size := self.random.randrange(4096, self.bytes)):
            limit = size % self.largest + 1
        process = Process(self.command, self.words_for(folder), scratch, limit, apart=apart)
        if kind in SIGNALS and has_begun(process, run.path):
            end = process.clock() + wait
            while process.clock() < end and process.poll() is None:
                time.sleep(0.005)
            stage = self.stage(run)  # that a signal ends is timed as if it were finished
            if process.poll() is None:
                os.kill(process.pid, SIGNALS[kind])
                self.struck[stage] += 1
        status, said = process.wait()
        if kind == "full disk":
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], capture_output=True, check=False)
        if status == 0:
            return False, ""  # it was faster
        if status != CODES[kind]:
            return True, f"exit code {status}: {said.strip()[-300:]}"
        return True, "" if kind == "kill" or said.count("\n") == 1 else f"not one line: {said.strip()[-300:]}"

    def stage(self, run: RunFolder) -> str:
        """The first stage that a ``run`` has not finished; ``end`` after all."""
        done = run.seconds()
        return next((stage for stage in self.stages if stage not in done), "end")

    def words_for(self, folder: Path) -> list[str]:
        """The command line that resumes the run in ``folder``, or starts it where there is none."""
        run = folder / "run"
        return ["--resume", str(run)] if (run / "config.yaml").exists() else self.words(folder, "run")

    def resume(self, folder: Path, scratch: Path, apart: bool) -> str:
        """Resume the run, or start it where there is none; what is wrong with how it ends, or ``good``."""
        out = folder / "run"
        status, said = Process(self.command, self.words_for(folder), scratch, apart=apart).wait()
        if status != 0:
            return f"resumed, exit code {status}: {said.strip()[-300:]}"
        if left := [file.name for file in folder.rglob(".*") if TEMPORARY.fullmatch(file.name)]:
            return f"left behind: {left[0]}"
        if left := [file for file in scratch.iterdir() if not file.name.startswith("pymp-")]:
            return f"left behind in the temporary folder: {left[0].name}"
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


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default="svi_sib,svi_bnn,svi_vid,svi_meta")
    for name in ("kills", "terminations", "interrupts", "full-disks"):
        parser.add_argument(f"--{name}", type=int, default=2)
    parser.add_argument("--strikes", type=int, default=1, help="interruptions of one run before it may end")
    parser.add_argument("--out", type=Path, help="folder for the runs, on a disk")
    parser.add_argument("--apart", type=int, default=10, help="one run in so many is a process as a shell starts it")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no trial of a command after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--also", type=str.split, default=[], help="options of the runs, which override those of the script")
    return parser.parse_args()


class Count:
    """What came of the trials of one command and one kind.

    Args:
        wanted: interruptions.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted, self.done, self.runs, self.good = wanted, 0, 0, 0

    def __str__(self) -> str:
        return f"{self.done} in {self.runs} runs, {self.good} good"


def try_command(trials: Trials, counts: dict[str, Count], strikes: int, minutes: float) -> None:
    """Run trials until each kind of interruption has struck as often as it is wanted to, all kinds in equal parts, or for so
    many ``minutes``; print each."""
    end = time.monotonic() + 60 * minutes
    while (left := [kind for kind, count in counts.items() if count.done < count.wanted]) and time.monotonic() < end:
        kind = min(left, key=lambda one: counts[one].done / counts[one].wanted)
        count = counts[kind]
        most = 1 if kind == "full disk" else min(strikes, count.wanted - count.done)
        found, struck = trials.run(kind, count.runs, most)
        count.done, count.runs, count.good = count.done + struck, count.runs + 1, count.good + (found == "good")
        print(f"{trials.command} {kind} {count.runs - 1}: struck {struck} times, {found}", flush=True)


def main() -> int:
    """Run all trials, print each and a table; 0 where all are good."""
    given = options()
    wanted = dict(zip(CODES, (given.kills, given.terminations, given.interrupts, given.full_disks), strict=True))
    torch.set_num_threads(1)
    commands = given.commands.split(",")
    for module in (*(f"inference.{command}" for command in commands), *LATE_IMPORTS):
        import_module(module)
    table = {command: {kind: Count(number) for kind, number in wanted.items()} for command in commands}
    for command, counts in table.items():
        place = Path(tempfile.mkdtemp(dir=given.out))  # an object that deletes it would do so in every copy of this process
        trials = Trials(command, place, given.seed, given.apart, given.out, given.also)
        print(f"{command}: {trials.seconds:.1f} s of processor time when left alone", flush=True)
        try_command(trials, counts, given.strikes, given.minutes)
        print(f"{command} was struck in: " + ", ".join(f"{stage} {count}" for stage, count in trials.struck.items()))
        for folder in (*trials.scratch, place):
            shutil.rmtree(folder, ignore_errors=True)
    print("\n| command | " + " | ".join(wanted) + " |\n|---" + "|---" * len(wanted) + "|")
    for command, counts in table.items():
        print(f"| {command} | " + " | ".join(map(str, counts.values())) + " |")
    return int(any(count.good < count.runs for counts in table.values() for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
