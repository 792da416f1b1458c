"""Sound files that cases start from: small images, features, weights, and finished runs of every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.items import LabelledItems
from inference.runs.tensors import save_features

COMMON = "--device cpu --progress false"
TASKS = "--tasks 32 --validations 2 --validation-tasks 8 --test-tasks 8 --beta 0.1 --steps 1"
FEW = f"{TASKS} --way 2 --queries 2 --train-way 2 --train-shot 1 --protocols standard"
METHODS = f"{FEW} --methods prototypical,anil:steps=2,r2d2:posterior=full".replace("--steps 1 ", "")
BASES = {
    "sib on features": f"svi_sib --features features.safetensors {FEW}",
    "sib on images": f"svi_sib --data folder --root images --image-size 16 --backbone conv4-4 --epochs 1 {FEW}",
    "sib on an archive": f"svi_sib --data folder --root images.zip --image-size 16 --backbone conv4-4 --epochs 1 {FEW}",
    "sib on lists": f"svi_sib --data mini-imagenet --root lists --image-size 16 --backbone conv4-4 --epochs 1 {FEW}",
    "sib by regression": f"svi_sib --data linear --queries 4 {TASKS.replace('--validations 2', '')}",
    "bnn on a curve": "svi_bnn --data curve --hidden 4 --epochs 4 --rounds 1 --samples 4 --algorithms vanilla --beta 1 "
    "--batch 120 --posteriors 1",
    "bnn on images": "svi_bnn --data folder --root pairs --image-size 8 --hidden 4 --epochs 2 --rounds 1 --samples 4 "
    "--algorithms vanilla,online --beta 1 --batch 8 --posteriors 1",
    "bnn on idx files": "svi_bnn --data mnist --root idx --hidden 4 --epochs 1 --samples 4 --algorithms vanilla --beta 1 "
    "--posteriors 1",
    "vid": "svi_vid --data folder --root pairs --image-size 16 --teacher conv4-4 --student conv4-4 --epochs 1 --updates 4 "
    "--batch 8 --per-class 4 --methods student,vid --runs 1 --cache cache",
    "meta on features": f"svi_meta --features features.safetensors {METHODS}",
    "meta on images": "svi_meta --data folder --root images --image-size 16 --backbone conv4-4 --epochs 1 --train-features all "
    f"--network-tasks 8 {METHODS.replace('anil:steps=2', 'matching')}",
    "meta on labels that are missing": "svi_meta --features features.safetensors --unlabelled 0.5 "
    f"{METHODS.replace('--train-shot 1', '--shot 2').replace('standard', 'semi')},tpn,nil,platipus,bmaml",
    "meta that asks for labels": "svi_meta --features features.safetensors --unlabelled 0.5 --asked 1 "
    f"{METHODS.replace('--train-shot 1', '--shot 2').replace('standard', 'active')},graph-active",
    "predict by a method": "predict --run runs/meta --way 2 --queries 2 --tasks 8",
    "predict tasks": "predict --run runs/sib --way 2 --queries 2 --tasks 8",
    "predict other images": "predict --run runs/sib --way 2 --queries 2 --tasks 8 --root images --split all",
    "predict own images": "predict --run runs/sib --support labelled --query new --samples 8",
    "predict without a run": "predict --backbone conv4-4 --weights network.pth --support labelled --query new --samples 8",
    "diagnose regression": "diagnose --run runs/linear --tasks 4 --simulations 8",
    "diagnose networks": "diagnose --run runs/bnn --simulations 8",
}
"""Command lines that run in a second or a few; ``--out`` is not among them."""
RUNS = {
    "sib": "sib on images",
    "linear": "sib by regression",
    "bnn": "bnn on a curve",
    "vid": "vid",
    "meta": "meta on features",
}
"""Finished run -> its command line."""


def words_of(base: str, out: str | None = None) -> list[str]:
    """The command and the words of a command line of :data:`BASES`."""
    command, *words = BASES[base].split()
    words += COMMON.split() if command.startswith("svi") else ["--progress", "false"] if command == "predict" else []
    return [command, *words, *(["--out", out] if out and command.startswith("svi") else [])]


def draw_images(place: Path) -> None:
    """Small images of a few patterns: ``images`` in three splits of four classes each, ``pairs`` in training and test of the
    same three classes, ``labelled`` and ``new`` for ``predict``."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 255, (4, 16, 16, 3))

    def draw(file: Path, pattern: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = patterns[pattern] + random.integers(-60, 60, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(file)

    for split in ("train", "val", "test"):
        for number in range(4):
            for image in range(6):
                draw(place / "images" / split / f"{split}{number}" / f"{image}.png", number)
    for split in ("train", "test"):
        for number in range(3):
            for image in range(6):
                draw(place / "pairs" / split / f"class{number}" / f"{image}.{('png', 'jpg', 'bmp')[image % 3]}", number)
    for number in range(2):
        draw(place / "labelled" / f"class{number}" / "a.png", number)
        draw(place / "new" / f"{number}.png", number)


def lay(place: Path, run: Callable[[list[str]], None]) -> None:
    """Make all files in ``place``; ``run`` runs a command line there."""
    draw_images(place)
    shutil.make_archive(str(place / "images"), "zip", place / "images")
    lists(place)
    idx(place / "idx" / "MNIST" / "raw", np.random.default_rng(0))
    save_features(
        place / "features.safetensors",
        {
            split: LabelledItems(torch.randn(24, 8), torch.arange(24) % 4, tuple(f"{split}{i}" for i in range(4)))
            for split in ("train", "val", "test")
        },
        {"dataset": "made"},
    )
    for name, base in RUNS.items():
        run(words_of(base, f"runs/{name}"))
    state = {f"weight{i}": torch.randn(3, 3) for i in range(2)}
    torch.save(state, place / "network.pth")
    run(["python", SAVE])


SAVE = """
torch.save(FeatureNetwork("conv4-4", (3, 16, 16)).backbone.state_dict(), "network.pth")
BNN.fit(net, x, y, epochs=2, progress=False).save("bnn.safetensors")
SIB.load("runs/sib").save("sib.safetensors")
VID.fit(net, copy.deepcopy(net), x, y, method="kd", updates=2, batch=4).save("vid.safetensors")
"""
"""Python that writes files of the Python interface; see :data:`benchmarks.fuzzing.calls.PRELUDE`."""


def lists(place: Path) -> None:
    """mini-ImageNet's layout of lists: ``lists/images`` and three CSV files."""
    folder = place / "lists"
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val", "test"):
        rows = ["filename,label"]
        for file in sorted((place / "images" / split).glob("*/*.png")):
            name = f"{file.parent.name}-{file.name}"
            shutil.copy(file, folder / "images" / name)
            rows.append(f"{name},{file.parent.name}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")


def idx(folder: Path, random: np.random.Generator) -> None:
    """Twenty digits in MNIST's files."""
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        images, labels = random.integers(0, 255, (20, 28, 28)), np.arange(20) % 10
        for name, values, kind in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            header = bytes([0, 0, 8, kind]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{split}-{name}-ubyte").write_bytes(header + values.astype("uint8").tobytes())
