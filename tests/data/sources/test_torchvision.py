"""torchvision's data sets, with stand-ins for its files: which class goes into which split."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.sources import torchvision as source
from data.sources.torchvision import CIFAR_FS, from_torchvision, load_cifar_fs, load_train_test


@pytest.fixture
def cifar(monkeypatch):
    """Two images of each of CIFAR-100's classes in training, one in test; every pixel is the class's index."""
    held_out = [name for members in CIFAR_FS.values() for name in members.split()]
    names = sorted([*held_out, *(f"other{i}" for i in range(64))])

    def load(name, root, *, train):
        labels = np.repeat(np.arange(100), 2 if train else 1)
        data = np.broadcast_to(labels[:, None, None, None], (len(labels), 32, 32, 3)).astype(np.uint8)
        return SimpleNamespace(data=data, targets=labels.tolist(), classes=names)

    monkeypatch.setattr(source, "from_torchvision", load)
    return names


def test_cifar_fs_gives_each_class_to_its_split(cifar, tmp_path):
    data = load_cifar_fs(tmp_path, 32)
    assert [data[s].num_classes for s in data.splits] == [64, 16, 20]
    assert {"beaver", "camel", "tractor"} <= set(data.val.class_names)  # Bertinetto et al. 2018
    assert {"whale", "bed", "rocket"} <= set(data.test.class_names)
    assert all(name.startswith("other") for name in data.train.class_names)
    for split in data.splits:
        part = data[split]
        assert (part.counts == 3).all()
        assert [cifar[int(pixel)] for pixel in part.items[:, 0, 0, 0]] == [part.class_names[y] for y in part.labels], split


def test_train_and_test_are_torchvisions(cifar, tmp_path):
    data = load_train_test("cifar100", tmp_path, 16)
    assert data.train.items.shape == (200, 3, 16, 16)
    assert data.test.items.shape == (100, 3, 16, 16)
    assert torch.equal(data.test.items[:, 0, 0, 0], data.test.labels)
    assert data.mirror
    assert not load_train_test("mnist", tmp_path, 32).mirror


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(*_, **__):
        raise RuntimeError("no network\nand more")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(UserError, match=r"MNIST is not in .* cannot be downloaded \(no network\): put its files there"):
        from_torchvision("MNIST", tmp_path)


def idx(*shape, fill=0):
    """A file of MNIST's format: unsigned bytes of a ``shape``."""
    size = math.prod(shape)
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + bytes([fill]) * size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"train-images-idx3-ubyte": b""}, "MNIST is not in .*, or damaged there, .*: put its files there"),
        ({"t10k-labels-idx1-ubyte": b""}, "MNIST is not in .*, or damaged there"),
        ({"train-images-idx3-ubyte": idx(2, 28, 28)[:-1]}, "MNIST is not in .*, or damaged there"),
        ({"train-images-idx3-ubyte": idx(0, 28, 28), "train-labels-idx1-ubyte": idx(0)}, "MNIST is .* damaged"),
        ({"train-labels-idx1-ubyte": idx(3)}, "images 2×28×28 and 3 labels"),
        ({"train-labels-idx1-ubyte": idx(2, fill=10)}, "MNIST's files are damaged"),
        ({"train-images-idx3-ubyte": bytes([0, 0, 13, 1, 0, 0, 0, 0])}, "damaged"),
    ],
)
def test_empty_and_damaged_idx_files_are_refused_in_one_line(tmp_path, change, message):
    for part in ("train", "t10k"):
        usual = {f"{part}-images-idx3-ubyte": idx(2, 28, 28), f"{part}-labels-idx1-ubyte": idx(2)}
        for name, content in usual.items():
            file = tmp_path / "MNIST" / "raw" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(change.get(name, content))
    if message is None:
        assert len(load_train_test("mnist", tmp_path, 28).train) == 2
        return
    with pytest.raises(UserError, match=message) as error:
        load_train_test("mnist", tmp_path, 28)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("root", [".", "new/one"])
def test_a_download_that_fails_leaves_no_empty_folders(tmp_path, monkeypatch, root):
    import torchvision.datasets

    def fail(folder, **_):
        os.makedirs(os.path.join(folder, "MNIST", "raw"))
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    (tmp_path / "kept").mkdir()
    with pytest.raises(UserError, match="cannot be downloaded"):
        from_torchvision("MNIST", tmp_path / root)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
