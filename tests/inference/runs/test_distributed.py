"""Two processes train what one would: the same tasks, items and random numbers, to the same parameters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inference import svi_bnn, svi_sib
from inference.runs.tensors import save_features
from tests.conftest import ROOT, gaussian_bank

pytestmark = pytest.mark.slow
TWO_WAYS = ("devices", "torchrun")
COMMON = ["--device", "cpu", "--precision", "64-true", "--progress", "false"]
META = ["--beta", "0.1", "--tasks", "66", "--batch", "15", "--validations", "2", "--validation-tasks", "40"]
META += ["--test-tasks", "20", "--queries", "5", "--protocols", "standard"]
BNN = ["--data", "curve", "--hidden", "6", "--epochs", "4", "--rounds", "2", "--posteriors", "2", "--batch", "31"]
BNN += ["--samples", "8", "--algorithms", "deterministic,vanilla,online", "--beta", "1"]


def start(command: str, arguments: list[str], out: Path, way: str | None = None, **settings) -> subprocess.Popen:
    """A run in one process, or in two by ``--devices 2`` or ``torchrun``."""
    words = [sys.executable, "-m"]
    if way == "torchrun":
        words += ["torch.distributed.run", "--nproc_per_node", "2", "-m"]
    words += [f"inference.{command}", *arguments, *COMMON, "--out", str(out)]
    words += ["--devices", "2"] if way == "devices" else []
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **settings)


def run(*words, **options) -> str:
    """What a run printed."""
    process = start(*words, **options)
    printed, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return printed


def run_alone(command: str, arguments: list[str], out: Path) -> None:
    """A run in this very process, which has imported all that a new one would have to."""
    main = {"svi_sib": svi_sib.main, "svi_bnn": svi_bnn.main}[command]
    main([*arguments, *COMMON, "--out", str(out)])


def furthest(one: Path, two: Path) -> float:
    """The largest difference between any two parameters of two runs, in units of the parameter where it is above 1."""
    files = sorted(path.name for path in (one / "checkpoints").glob("*.safetensors"))
    assert files == sorted(path.name for path in (two / "checkpoints").glob("*.safetensors"))
    gaps = []
    for file in files:
        first, second = (load_file(out / "checkpoints" / file) for out in (one, two))
        for name, value in first.items():
            gaps.append(((value - second[name]).abs() / value.abs().clamp_min(1)).double().nan_to_num().max().item())
    return max(gaps)


def numbers(record: dict) -> dict[str, float]:
    """What is counted or measured in a record, but for the time it took."""
    return {name: value for name, value in record.items() if isinstance(value, int | float) and name != "seconds"}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    parts = {split: gaussian_bank(seed=i) for i, split in enumerate(("train", "val", "test"))}
    return str(save_features(tmp_path_factory.mktemp("features") / "blobs.safetensors", parts))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Fourteen classes of nine coloured squares, so that batch norm has something to average."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for c in range(14):
        (root / f"class{c}").mkdir()
        for i in range(9):
            noise = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray((noise // 2 + 9 * c).numpy()).save(root / f"class{c}" / f"{i}.png")
    return str(root)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, features):
    """Runs of one process: command -> folder."""
    folder = tmp_path_factory.mktemp("alone")
    run_alone("svi_sib", ["--features", features, *META], folder / "svi_sib")
    run_alone("svi_bnn", BNN, folder / "svi_bnn")
    return folder


@pytest.mark.parametrize(("command", "way"), [("svi_sib", "devices"), ("svi_bnn", "devices")])
def test_two_processes_end_with_the_parameters_of_one(command, way, alone, features, tmp_path):
    """An odd batch, so that the two have parts of unequal size."""
    arguments = {"svi_sib": ["--features", features, *META], "svi_bnn": BNN}[command]
    printed = run(command, arguments, tmp_path / "run", way)
    assert furthest(alone / command, tmp_path / "run") < 1e-6
    assert printed.count("results: ") == 1, "one process prints"
    assert os.listdir(tmp_path) == ["run"]
    first, second = (json.loads((out / "metrics.json").read_text()) for out in (alone / command, tmp_path / "run"))
    assert len(first["results"]) == len(second["results"])
    for one, two in zip(first["results"], second["results"], strict=True):
        assert numbers(two) == pytest.approx(numbers(one), rel=1e-4)


def half_done(run: Path, copy: Path) -> Path:
    """A copy of a run as if it had been interrupted after the first of its two validations."""
    shutil.copytree(run, copy)
    assert all((stage / "previous.ckpt").exists() for stage in (copy / "checkpoints").glob("*-k*/"))
    for file in (copy / "metrics.json", *copy.glob("checkpoints/*-k*.safetensors"), *copy.glob("checkpoints/*/last.ckpt")):
        file.unlink()
    return copy


def test_a_run_of_one_process_is_resumed_by_two_and_the_other_way_round(alone, tmp_path):
    """By as many as there are now, whatever the run began with."""
    one = half_done(alone / "svi_sib", tmp_path / "one")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "inference.svi_sib"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, "--resume", str(one)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert furthest(alone / "svi_sib", one) < 1e-6
    two = half_done(one, tmp_path / "two")
    svi_sib.main(["--resume", str(two), "--devices", "1", "--progress", "false"])
    assert furthest(alone / "svi_sib", two) < 1e-6


def test_draws_within_the_steps_and_a_hierarchical_prior_are_shared_too(features, tmp_path):
    arguments = ["--features", features, *META, "--batch", "16", "--gradient", "mlp", "--inner-samples", "2", "--steps", "2"]
    arguments += ["--prior", "hierarchical", "--inner-lr", "1e-3", "--units", "weights"]
    run_alone("svi_sib", arguments, tmp_path / "one")
    run("svi_sib", arguments, tmp_path / "two", "torchrun")
    assert furthest(tmp_path / "one", tmp_path / "two") < 1e-6


def test_pre_training_shares_images_augmentation_and_batch_norm(images, tmp_path):
    """And the teacher's answers."""
    arguments = ["--data", "folder", "--root", images, "--image-size", "16", "--epochs", "1", "--way", "2", "--queries", "3"]
    arguments += ["--generations", "2", *META, "--queries", "3", "--tasks", "32", "--steps", "0"]
    run_alone("svi_sib", arguments, tmp_path / "one")
    run("svi_sib", arguments, tmp_path / "two", "torchrun")
    assert furthest(tmp_path / "one", tmp_path / "two") < 1e-6


def test_torchrun_agrees_on_a_folder_of_its_own_name(features, tmp_path):
    """Without ``--out`` its name has the time, which two processes may read a second apart."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "inference.svi_bnn"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, *BNN, *COMMON], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "metrics.json").exists()


def test_bad_options_are_said_once(tmp_path):
    process = start("svi_bnn", ["--epochs", "0"], tmp_path / "run", "torchrun")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("error: --epochs 0") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", TWO_WAYS)
def test_a_killed_process_ends_the_run(way, tmp_path):
    """With a line, and long before a timeout."""
    arguments = [*BNN, "--epochs", "4000", "--algorithms", "vanilla"]  # there is a checkpoint after a sixtieth of them
    with open(tmp_path / "out", "w") as out, open(tmp_path / "errors", "w") as errors:
        process = start("svi_bnn", arguments, tmp_path / "run", way, stdout=out, stderr=errors)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/checkpoints/vanilla-beta1/last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(youngest_worker(process.pid), signal.SIGKILL)
        code = process.wait(timeout=90)
    assert code != 0
    said = (tmp_path / "errors").read_text()
    if way == "devices":
        assert code == 2
        assert [line for line in said.splitlines() if "error: " in line] == said.strip().splitlines()
        assert "has ended (SIGKILL)" in said
        assert "--resume" in said
    else:
        assert "Signal 9 (SIGKILL)" in said
    assert not (tmp_path / "run/metrics.json").exists()


def youngest_worker(parent: int) -> int:
    """The last process that ``parent`` started for training."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = path.read_text().partition(" (")
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(rest.rpartition(") ")[2].split()[1]) == parent and "resource_tracker" not in command:
            children.append(int(pid))
    return max(children)
