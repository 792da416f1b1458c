"""Supervised data sets: folders, the embedded ones, real MNIST."""

import pytest
import torch
from PIL import Image

from data.errors import UserError
from data.supervised import curve, load_letters, load_supervised


def tree(root, classes=("a", "b"), splits=("train", "test"), images=3):
    for split in splits:
        for index, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (20, 16), (40 * index, 10 * i, 100)).save(root / split / name / f"{i}.png")
    return root


def test_folder_has_the_same_classes_in_both_splits(tmp_path):
    data = load_supervised("folder", tree(tmp_path / "images"), image_size=16)
    assert data.train.items.shape == (6, 3, 16, 16)
    assert data.train.class_names == data.test.class_names == ("a", "b")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.is_classification


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: tree(root, splits=("train",)), "lacks train/ or test/"),
        (lambda root: tree(tree(root, splits=("train",)), classes=("a", "c"), splits=("test",)), "different classes"),
        (lambda root: root, "no such file or folder"),
    ],
)
def test_bad_folders_are_named(build, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_supervised("folder", build(tmp_path / "images"))


def test_digits_are_seeded_and_training_differs_from_test():
    first, again, other = (load_supervised("glyphs", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.items, again.train.items)
    assert not torch.equal(first.train.items, other.train.items)
    assert not torch.equal(first.train.items[:200], first.test.items[:200])
    assert first.train.counts.tolist() == [400] * 10
    assert load_letters().num_classes == 22


def test_curve_leaves_a_gap_and_follows_its_function():
    data = load_supervised("curve")
    assert not data.is_classification
    x = data.train.items[:, 0]
    assert float(x.abs().min()) >= 0.6
    assert float((data.train.labels - curve(x)).std()) == pytest.approx(0.1, rel=0.2)


def test_choosing_items():
    data = load_supervised("curve").train
    chosen = data.choose(10, 0)
    assert len(chosen) == 10
    assert torch.equal(chosen.items, data.choose(10, 0).items)
    assert data.choose(None, 0) is data
    with pytest.raises(UserError, match="121 items asked for, but there are 120"):
        data.choose(121, 0)


def test_mnist(shared_data):
    data = load_supervised("mnist", shared_data)
    assert data.train.items.shape == (60_000, 1, 28, 28)
    assert data.test.items.dtype == torch.uint8
    assert not data.mirror
