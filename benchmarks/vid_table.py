"""Few images per class of CIFAR-10, WRN-40-2 to WRN-16-1: the table of Ahn et al. 2019 (1a), in pieces that resume.

``python benchmarks/vid_table.py --root DATA --out runs/vid-table [--minutes 9] [--jobs 5] [options of svi_vid]`` runs each
method as a process of its own, several side by side, stops after so many minutes (exit code 75) and goes on when called again;
the last call prints the table. ``DATA`` is a folder or archive with ``{train,test}/<class>/*``. Options of svi_vid come after
these and override :data:`FULL`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from data.errors import UserError
from inference.runs.files import read_json, write_json
from inference.runs.study import save_figure
from inference.vid.plots import accuracy_by_images
from inference.vid.report import format_table

FULL = {
    "data": "folder",
    "teacher": "wrn-40-2",
    "student": "wrn-16-1",
    "image_size": "32",
    "epochs": "40",
    "updates": "3000",
    "batch": "128",
    "learning_rate": "2e-3",
    "precision": "bf16-mixed",
    "per_class": "100,500",
    "strength": "0.3,1,3",
    "runs": "3",
    "progress": "false",
}
UNFINISHED = 75


def parse() -> tuple[argparse.Namespace, dict[str, str]]:
    """Our own options, and those of svi_vid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/vid-table"))
    parser.add_argument("--methods", default="student,kd,fitnet,at,vid")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--jobs", type=int, default=5 if torch.cuda.is_available() else 1)
    own, rest = parser.parse_known_args()
    if len(rest) % 2 or not all(word.startswith("--") for word in rest[::2]):
        parser.error("options of svi_vid are given as --name value")
    given = {name[2:].replace("-", "_"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    return own, FULL | {"root": own.root, "cache": str(own.out / "teachers")} | given


def start(method: str, out: Path, options: dict[str, str], threads: int) -> subprocess.Popen:
    """One method's process, new or resumed; its output goes to a log beside its run folder."""
    folder = out / method
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--methods", method, "--out", str(folder)]
    if (folder / "config.yaml").exists():
        words = ["--resume", str(folder)]
    log = (out / f"{method}.log").open("a")
    environment = os.environ | ({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": str(threads)})
    return subprocess.Popen([sys.executable, "-m", "inference.svi_vid", *words], stdout=log, stderr=log, env=environment)


def work(own: argparse.Namespace, options: dict[str, str], methods: list[str], deadline: float) -> bool:
    """Run what is left until the deadline; whether all is finished."""
    left = [method for method in methods if not (own.out / method / "metrics.json").exists()]
    running: dict[str, subprocess.Popen] = {}
    try:
        while (left or running) and time.monotonic() < deadline:
            taught = any(Path(options["cache"]).glob("*.safetensors"))  # the first process trains the teacher alone
            while left and len(running) < (own.jobs if taught else 1):
                method = left.pop(0)
                threads = max(1, (os.cpu_count() or 1) // own.jobs) if taught else os.cpu_count() or 1
                running[method] = start(method, own.out, options, threads)
            time.sleep(1)
            for method, process in list(running.items()):
                if process.poll() is not None:
                    del running[method]
                    if process.returncode:
                        sys.exit(f"{method} failed:\n{(own.out / f'{method}.log').read_text()[-2000:]}")
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return not left and not running


def main() -> None:
    own, options = parse()
    own.out.mkdir(parents=True, exist_ok=True)
    methods = own.methods.split(",")
    if not work(own, options, methods, time.monotonic() + 60 * own.minutes):
        print(f"unfinished after {own.minutes:g} minutes: call again to go on")
        sys.exit(UNFINISHED)
    records = [record for method in methods for record in read_json(own.out / method / "metrics.json")["results"]]
    students = [record for record in records if record["method"] != "teacher"]
    teacher = [record for record in records if record["method"] == "teacher"][:1]
    write_json(own.out / "metrics.json", {"options": options, "results": teacher + students})
    save_figure(accuracy_by_images(teacher + students), own.out / "accuracy.png")
    print(format_table(teacher + students))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
