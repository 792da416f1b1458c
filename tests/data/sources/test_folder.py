"""Image trees: split and unsplit, nested alphabets, mixed modes; and what is wrong with them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataWarning, UserError
from data.items import SPLITS
from data.sources.folder import load_folder, load_train_test_folder, load_tree
from tests.data.conftest import red, save_image


def test_split_tree(tree):
    data = load_folder(tree, 16)
    assert data.image_shape == (3, 16, 16)
    assert data.train.counts.tolist() == [4, 4, 4]
    assert data.test.class_names == ("test0", "test1")


def test_every_split_holds_its_own_folders_images_in_the_order_of_its_labels(tree):
    data = load_folder(tree, 16)
    for split in SPLITS:
        numbers = torch.arange(4).repeat(data[split].num_classes)
        expected = [red(split, label, number) for label, number in zip(data[split].labels, numbers, strict=True)]
        difference = data[split].items[:, 0, 8, 8] - torch.tensor(expected)
        assert float(difference.abs().max()) < 6, split


def test_unsplit_tree_is_split_by_class_with_the_seed(tmp_path):
    for c in range(10):
        save_image(tmp_path / "flat" / f"k{c}" / "0", c)
    data = load_folder(tmp_path / "flat", 16, seed=1)
    names = [set(data[s].class_names) for s in data.splits]
    assert set.union(*names) == {f"k{c}" for c in range(10)}
    assert sum(map(len, names)) == 10
    assert data.train.class_names != load_folder(tmp_path / "flat", 16, seed=2).train.class_names


def test_nested_alphabets_are_split_by_alphabet(tmp_path):
    for alphabet in "ABCDE":
        for character in range(3):
            save_image(tmp_path / "omni" / alphabet / f"character{character}" / "0", 255, mode="L")
    data = load_folder(tmp_path / "omni", 20)
    groups = [{name.split("/")[0] for name in data[s].class_names} for s in data.splits]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert data.image_shape == (1, 20, 20)


def test_mixed_modes_become_colour(tmp_path):
    save_image(tmp_path / "mix" / "a" / "0", 7, mode="L")
    save_image(tmp_path / "mix" / "b" / "0", 7, size=(50, 9))
    assert load_tree(tmp_path / "mix", 16).items.shape == (2, 3, 16, 16)


def test_bad_folders_are_named(tmp_path, tree):
    with pytest.raises(UserError, match="no such file"):
        load_folder(tmp_path / "missing", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load_folder(tmp_path / "empty", 16)
    (tree / "train" / "train0" / "9.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"train0.9\.png"):
        load_folder(tree, 16)


def test_truncated_image_is_named(tree):
    file = tree / "train" / "train0" / "1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UserError, match=r"1\.jpg"):
        load_folder(tree, 16)


def two_splits(root, classes=("a", "b"), splits=("train", "test"), images=3):
    """``{train,test}/<class>/*`` of one classifier."""
    for split in splits:
        for index, name in enumerate(classes):
            for i in range(images):
                save_image(root / split / name / f"{i}", red(split, index, i))
    return root


def test_train_and_test_of_one_classifier_have_the_same_classes(tmp_path):
    data = load_train_test_folder(two_splits(tmp_path / "images"), 16)
    assert data.train.items.shape == (6, 3, 16, 16)
    assert data.train.class_names == data.test.class_names == ("a", "b")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for split in ("train", "test"):
        part = getattr(data, split)
        assert part.items[:, 0, 8, 8].tolist() == [red(split, c, i) for c in range(2) for i in range(3)]
    assert data.is_classification


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: two_splits(root, splits=("train",)), "lacks train/ or test/"),
        (lambda root: two_splits(two_splits(root, splits=("train",)), ("a", "c"), ("test",)), "different classes"),
        (lambda root: root, "no such file or folder"),
    ],
)
def test_bad_train_and_test_folders_are_named(build, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_train_test_folder(build(tmp_path / "images"), 16)


def test_hidden_files_and_folders_named_as_images_are_no_images(tmp_path):
    """Some systems leave ``._photo.png`` beside ``photo.png``."""
    for c in "abc":
        save_image(tmp_path / c / "0", 10)
    (tmp_path / "a" / "._0.png").write_bytes(b"not an image")
    (tmp_path / "b" / "more.png").mkdir()
    assert load_tree(tmp_path, 8).counts.tolist() == [1, 1, 1]


def test_16_bits_keep_their_shades(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.repeat(np.array([[0, 32768, 65535]], dtype=np.uint16), 3, 0)).save(tmp_path / "a" / "0.png")
    assert load_tree(tmp_path, 3).items[0, 0, 1].tolist() == [0, 128, 255]


def test_an_enormous_image_is_refused_in_one_line(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    save_image(tmp_path / "a" / "0", 10, size=(20, 20))
    assert len(load_tree(tmp_path, 8)) == 1
    for side in (25, 50):  # Pillow warns of one, and refuses the other
        save_image(tmp_path / "a" / "1", 10, size=(20, side))
        with pytest.raises(UserError, match=r"^cannot read the image .*1\.png: it has more than 400 pixels; make it smaller$"):
            load_tree(tmp_path, 8)
    assert not recwarn.list


def test_numbers_that_are_no_brightness_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "a" / "0.tif")
    with pytest.raises(UserError, match="32 bits from nan to nan"):
        load_tree(tmp_path, 3)


@pytest.mark.parametrize("kind", ["GIF", "PPM", "PCX", "EPS"])
def test_other_formats_are_not_decoded_whatever_they_are_called(tmp_path, kind):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png", format=kind)
    with pytest.raises(UserError, match=r"0\.png: it is none of PNG, JPEG, WEBP, BMP, TIFF"):
        load_tree(tmp_path, 8)


def test_a_photograph_of_several_pictures_is_read(tmp_path):
    """Cameras write MPO, which begins as a JPEG does."""
    (tmp_path / "a").mkdir()
    picture = Image.new("RGB", (8, 8), (200, 10, 10))
    picture.save(tmp_path / "a" / "0.jpg", format="MPO", save_all=True, append_images=[picture])
    assert load_tree(tmp_path, 8).items[0, 0].float().mean() > 190


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: save_image(tree / "val" / "train0" / "0"), "the class train0 in train and in val"),
        (lambda tree: save_image(tree / "more" / "0"), r"the folder more/ beside train/, val/, test/"),
        (lambda tree: save_image(tree / "train" / "0"), r"train.0\.png is in no class's folder: move it into"),
        (lambda tree: save_image(tree / "0"), r"0\.png is in no class's folder: move it into"),
        (lambda tree: (tree / "train").rename(tree / "Train"), "the folder Train/ beside train/, val/, test/"),
    ],
)
def test_what_a_split_tree_would_lose_or_mix_up_is_named(tree, change, message):
    change(tree)
    with pytest.raises(UserError, match=message):
        load_folder(tree, 16)


def test_what_stands_beside_train_and_test_is_named(tmp_path):
    root = two_splits(tmp_path / "images", splits=("train", "val", "test"))
    with pytest.warns(DataWarning, match="val is not read: validation images are taken from train"):
        assert len(load_train_test_folder(root, 16).train) == 6
    save_image(root / "more" / "0")
    with pytest.raises(UserError, match="the folder more/ beside train/"):
        load_train_test_folder(root, 16)


def test_names_that_break_a_line_or_are_no_text_are_escaped(tmp_path):
    for name in (b"a\nb", b"\xff", b"c d"):
        save_image(tmp_path / "tree" / os.fsdecode(name) / "0")
    assert load_tree(tmp_path / "tree", 8).class_names == ("a\\nb", "c d", "\\udcff")


def test_images_larger_than_memory_are_refused_before_any_is_read(tree, monkeypatch):
    monkeypatch.setattr("data.memory.memory", lambda: 2.0**30)
    monkeypatch.setattr("data.sources.folder.image_mode", lambda path: pytest.fail("an image was opened"))
    with pytest.raises(UserError, match=r"`image_size=20000`\) takes at least .* GB of memory, and there are 1.07 GB"):
        load_folder(tree, 20_000)
