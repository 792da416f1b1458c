"""Shared fixtures: a seed for every test, the real data's place, small feature banks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pytest
import torch

from data.items import LabelledItems

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


def gaussian_bank(classes: int = 12, images: int = 30, dim: int = 10, noise: float = 0.6, seed: int = 0) -> LabelledItems:
    """Features of classes that are Gaussian blobs on the unit sphere."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    labels = torch.arange(classes).repeat_interleave(images)
    noise_draw = noise * torch.randn(classes * images, dim, generator=generator) / dim**0.5
    items = torch.nn.functional.normalize(centers[labels] + noise_draw, dim=-1)
    return LabelledItems(items, labels, tuple(f"class {i}" for i in range(classes)))
