"""Shared fixtures: a seed for every test, the real data's place, small feature banks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pytest
import torch

from data.items import SPLITS, ImageSplits, LabelledItems

if os.environ.get("SIBYL_GPU_TESTS") is None:  # figures are those of a CPU, to the digit; `make gpu` has the tests of a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SIBYL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state and an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def float64():
    """Tensors made in the test are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def threads():
    """Sets how many threads an operation of torch's takes, for the test alone."""
    known = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(known)


LONGEST = ("test_notebooks.py", "test_distributed.py", "test_svi_sib.py", "test_svi_vid.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then others with slow tests, so that of processes side by side none is left with a long one at
    the end; tests of a GPU are left out where there is none."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST) + (item.path not in slow)

    items.sort(key=place)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="on a GPU: make gpu"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data in {SHARED}: set SIBYL_DATA to its folder")
    return SHARED


def kill_midway(command: str, arguments: list[str], out: Path, stage: str) -> None:
    """Start ``python -m inference.<command>`` and kill -9 it once ``stage`` has a checkpoint, before it has finished."""
    words = [sys.executable, "-m", f"inference.{command}", *arguments, "--out", str(out)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = out / "checkpoints" / stage / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoint.exists(), "it had begun"
    assert not (out / "metrics.json").exists(), "and not ended"


def explore_elsewhere(run: Path) -> dict:
    """What ArviZ makes of a run's posteriors in a process that cannot import Sibyl: see :mod:`tests.elsewhere`."""
    words = [sys.executable, "-I", str(ROOT / "tests" / "elsewhere.py"), str(run)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=run, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def gaussian_bank(classes: int = 12, images: int = 30, dim: int = 10, noise: float = 0.6, seed: int = 0) -> LabelledItems:
    """Features of classes that are Gaussian blobs on the unit sphere."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    labels = torch.arange(classes).repeat_interleave(images)
    noise_draw = noise * torch.randn(classes * images, dim, generator=generator) / dim**0.5
    items = torch.nn.functional.normalize(centers[labels] + noise_draw, dim=-1)
    return LabelledItems(items, labels, tuple(f"class {i}" for i in range(classes)))


def marked_splits(classes: int = 6, images: int = 20, dim: int = 8, noise: float = 0.1) -> dict[str, LabelledItems]:
    """Features of all splits that carry their marks: :func:`splits_of` and :func:`classes_of` read where they came from.

    The first feature is the split's number, the second the class's; the others are a blob per class, so that guides learn.
    """
    parts = {}
    for index, split in enumerate(SPLITS):
        bank = gaussian_bank(classes, images, dim - 2, noise, seed=index)
        marks = torch.stack([torch.full((len(bank),), float(index)), bank.labels.float()], dim=-1)
        names = tuple(f"{split} class {i}" for i in range(classes))
        parts[split] = LabelledItems(torch.cat([marks, bank.items], dim=-1), bank.labels, names)
    return parts


def marked_images(classes: int = 6, images: int = 20, image_size: int = 16, *, mirror: bool = False) -> ImageSplits:
    """uint8 images of all splits that carry their marks in their first two pixels; the others are noise around a gray of the
    class, so that networks learn."""
    parts = {}
    for index, split in enumerate(SPLITS):
        generator = torch.Generator().manual_seed(index)
        labels = torch.arange(classes).repeat_interleave(images)
        gray = (40 + 170 * labels / classes)[:, None, None, None]
        pixels = gray + 15 * torch.randn(len(labels), 1, image_size, image_size, generator=generator)
        items = pixels.clamp(0, 255).to(torch.uint8)
        items[:, 0, 0, 0], items[:, 0, 0, 1] = index, labels.to(torch.uint8)
        parts[split] = LabelledItems(items, labels, tuple(f"{split} class {i}" for i in range(classes)))
    return ImageSplits("marked", parts["train"], parts["val"], parts["test"], mirror=mirror)


def splits_of(items: torch.Tensor) -> set[str]:
    """The splits that marked items (``[..., dim]`` features or ``[..., channels, height, width]`` uint8 images) come from."""
    marks = items[..., 0, 0, 0] if items.dtype == torch.uint8 else items[..., 0]
    return {SPLITS[int(mark)] for mark in marks.unique()}


def classes_of(items: torch.Tensor) -> torch.Tensor:
    """Each marked item's class in its split, int64."""
    return (items[..., 0, 0, 1] if items.dtype == torch.uint8 else items[..., 1]).long()


def descend(objective: torch.nn.Module, *data: torch.Tensor, steps: int = 400) -> None:
    """Minimise an objective of a Gaussian's numbers until only the noise of its gradient is left."""
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(*data).backward()
        optimizer.step()
        schedule.step()
