"""A run on data of twice the memory that its process may use: ``python -m benchmarks.larger_than_memory``.

Makes a folder of random images, pre-trains a small network on them for an epoch, embeds them, and meta-trains on their
features, in a control group whose memory Linux limits: who takes more is killed. Prints what the process held over time:
anonymous memory, which cannot be given back, and pages of files, which the system takes when others need them; and what counts
towards the limit, which is neither, for libraries may have been read by others. As root on Linux.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.catalogue import load_data
from data.errors import UserError
from inference.meta.sib import SIB

GROUPS = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
"""Where Linux keeps control groups, of its first and second version, and the file of a group that has its limit."""
USED = "memory.usage_in_bytes", "memory.current"
"""The file that has what a group takes, likewise: pages of files, too, that its processes have read or written."""
SIZE, CLASSES = 128, 40
FEATURES = 512


class Patches(nn.Module):
    """A network that costs little, so that reading is what takes time: two layers of patches, their mean, and many features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 32, 16, 16), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 4, 4), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, FEATURES), nn.ReLU()),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def make_images(root: Path, count: int) -> None:
    """``root/<class>/<number>.png``: flat colours of a class with noise, quick to decode."""
    draw = np.random.default_rng(0)
    for number in range(CLASSES):
        (root / f"class{number:02d}").mkdir(parents=True)
        colour = draw.integers(40, 216, 3)
        for i in range(count // CLASSES):
            coarse = np.clip(colour + draw.normal(0, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
            whole = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.NEAREST)
            whole.save(root / f"class{number:02d}" / f"{i:06d}.png", compress_level=1)


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A control group of so many bytes; its folder.

    Raises:
        UserError: none can be made.
    """
    for folder, file in GROUPS.items():
        group = folder / f"larger-than-memory-{os.getpid()}"
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    raise UserError("no control group can be made: run this as root, on Linux, with its memory controller")


def held(process: int) -> tuple[float, float]:
    """MB of anonymous memory and of pages of files that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    numbers = {line.split(":")[0]: float(line.split()[1]) / 1e3 for line in lines if line.startswith("Rss")}
    return numbers.get("RssAnon", 0.0), numbers.get("RssFile", 0.0)


def used(group: Path) -> float:
    """MB that count towards a group's limit."""
    return next((float((group / name).read_text()) for name in USED if (group / name).exists()), 0.0) / 1e6


def train(root: str, out: str) -> None:
    """What the limited process does."""
    torch.set_num_threads(1)
    data = load_data("folder", root, image_size=SIZE)
    images = {split: data[split].items.nbytes for split in data.splits}
    print(f"images: {sum(images.values()) / 1e9:.2f} GB", flush=True)
    options = {
        "epochs": 1,
        "tasks": 1600,
        "validations": 4,
        "validation_tasks": 100,
        "test_tasks": 100,
        "predictor": "distance",
    }
    SIB.fit(data, backbone=Patches(), out=out, device="cpu", **options)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("benchmarks.larger_than_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=float, default=1.0, help="GB of memory, of which libraries take 0.6")
    parser.add_argument("--times", type=float, default=2.0, help="GB of images, in units of the limit")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two lines")
    parser.add_argument("--scratch", type=Path, help="a folder with room for eight times the limit")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(*options.child)
        return
    scratch = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        with limited(int(options.limit * 1e9)) as group:
            make_images(scratch / "images", int(options.times * options.limit * 1e9 / (3 * SIZE**2)))
            watch(scratch, group, options.every)
    finally:
        shutil.rmtree(scratch)


def watch(scratch: Path, group: Path, every: float) -> None:
    """Train on the images in ``scratch`` in a ``group``, and print what the process holds, after ``every`` so many seconds."""
    places = {"SIBYL_CACHE": str(scratch / "cache"), "TMPDIR": str(scratch)}
    words = [sys.executable, "-m", "benchmarks.larger_than_memory", "--child", str(scratch / "images"), str(scratch / "run")]
    start, most = time.monotonic(), 0.0
    with subprocess.Popen(
        ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *words], env=os.environ | places
    ) as run:
        said = start
        while run.poll() is None:
            time.sleep(0.2)
            try:
                (anonymous, files), whole = held(run.pid), used(group)
            except (OSError, ValueError):
                break
            most = max(most, anonymous)
            if time.monotonic() - said >= every:
                said = time.monotonic()
                done = ", ".join(sorted(path.stem for path in (scratch / "run").glob("checkpoints/*")))
                sizes = f"anonymous {anonymous:6.0f} MB  files {files:6.0f} MB  group {whole:6.0f} MB"
                print(f"{said - start:6.0f} s  {sizes}  {done}", flush=True)
    bank = scratch / "run/features.safetensors"
    size = f"{bank.stat().st_size / 1e9:.2f} GB" if bank.exists() else "none"
    print(f"exit code {run.returncode}; at most {most:.0f} MB anonymous; features: {size}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
