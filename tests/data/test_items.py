"""Reading images: trees split and unsplit, nested alphabets, archives, pickles, glyphs; and what is wrong with them."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data.augmentation import LETTERS, PHOTOGRAPHS, Augmentation, Warp
from data.catalogue import load_data
from data.errors import UserError
from data.sources.archive import unpack
from data.sources.folder import load_folder, load_tree
from data.sources.glyphs import draw_alphabet, load_glyphs, look
from data.sources.mini_imagenet import load_mini_imagenet


def save_image(path, value=0, size=(20, 24), mode="RGB", suffix=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 10, 200)).save(path.with_suffix(suffix))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIBYL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for split, classes in {"train": 3, "val": 2, "test": 2}.items():
        for c in range(classes):
            for i in range(4):
                save_image(root / split / f"class{c}" / f"{i}", 50 * c + i, suffix=".jpg" if i % 2 else ".png")
    return root


def test_split_tree(tree):
    data = load_folder(tree, 16)
    assert data.image_shape == (3, 16, 16)
    assert data.train.counts.tolist() == [4, 4, 4]
    assert data.test.class_names == ("class0", "class1")
    assert abs(int(data.train.items[8, 0, 8, 8]) - 100) < 6  # class2's first image, red = 100


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
    data = load_data("omniglot", tmp_path / "omni", image_size=20)
    groups = [{name.split("/")[0] for name in data[s].class_names} for s in data.splits]
    assert not groups[0] & groups[2]
    assert data.image_shape == (1, 20, 20)
    assert int(data.train.items.max()) == 0  # white paper became black


def test_mixed_modes_become_colour(tmp_path):
    save_image(tmp_path / "mix" / "a" / "0", 7, mode="L")
    save_image(tmp_path / "mix" / "b" / "0", 7, size=(50, 9))
    assert load_tree(tmp_path / "mix", 16).items.shape == (2, 3, 16, 16)


def test_archives_are_unpacked_once_and_safely(tree, tmp_path):
    archive = tmp_path / "tree.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in tree.rglob("*.*"):
            out.write(file, "top/" + str(file.relative_to(tree)))
    assert torch.equal(load_folder(archive, 16).train.items, load_folder(tree, 16).train.items)
    assert unpack(archive) == unpack(archive)
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as out:
        out.writestr("../outside.txt", "x")
    with pytest.raises(UserError, match="unsafe"):
        unpack(evil)
    assert not (tmp_path / "cache" / "outside.txt").exists()
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(damaged)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


def test_bad_folders_are_named(tmp_path, tree):
    with pytest.raises(UserError, match="no such file"):
        load_folder(tmp_path / "missing", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load_folder(tmp_path / "empty", 16)
    (tree / "train" / "class0" / "9.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"class0.9\.png"):
        load_folder(tree, 16)
    with pytest.raises(UserError, match="needs --root"):
        load_data("folder")
    with pytest.raises(UserError, match="unknown data set"):
        load_data("imagenet")


def test_truncated_image_is_named(tree):
    file = tree / "train" / "class0" / "1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(UserError, match=r"1\.jpg"):
        load_folder(tree, 16)


@pytest.mark.parametrize("layout", ["cache", "category"])
def test_mini_imagenet_pickles(tmp_path, layout):
    images = np.random.default_rng(0).integers(0, 255, (12, 84, 84, 3), dtype=np.uint8)
    for split in ("train", "val", "test"):
        if layout == "cache":
            content = {"image_data": images, "class_dict": {"n1": list(range(6)), "n2": list(range(6, 12))}}
            name = f"mini-imagenet-cache-{split}.pkl"
        else:
            content = {"data": images, "labels": [3] * 6 + [8] * 6}
            name = f"miniImageNet_category_split_{split}.pickle"
        (tmp_path / name).write_bytes(pickle.dumps(content))
    data = load_mini_imagenet(tmp_path, 84)
    assert data.train.counts.tolist() == [6, 6]
    assert torch.equal(data.train.items[7], torch.from_numpy(images[7]).permute(2, 0, 1))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_cannot_run_code(tmp_path, capsys):
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(UserError, match="not data"):
        load_mini_imagenet(tmp_path, 84)
    assert "executed" not in capsys.readouterr().out


def test_mini_imagenet_csv(tmp_path):
    for split in ("train", "val", "test"):
        rows = ["filename,label"]
        for i in range(4):
            save_image(tmp_path / "images" / f"{split}{i}", i, suffix=".jpg")
            rows.append(f"{split}{i}.jpg,n{i % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows))
    assert load_mini_imagenet(tmp_path, 32).test.counts.tolist() == [2, 2]


def test_glyphs_are_seeded_disjoint_and_distinct():
    data = load_glyphs(20, images_per_class=3, max_classes=30)
    again = load_glyphs(20, images_per_class=3, max_classes=30)
    assert torch.equal(data.test.items, again.test.items)
    assert not torch.equal(data.test.items, load_glyphs(20, images_per_class=3, max_classes=30, seed=1).test.items)
    names = [{n.split()[0] for n in data[s].class_names} for s in data.splits]
    assert not names[0] & names[2]
    alphabet = draw_alphabet()
    looks = torch.stack([look(drawing[0]) for split in alphabet.values() for drawing in split.values()])
    similarity = looks @ looks.T - 2 * torch.eye(len(looks))
    assert similarity.max() < 0.94, "two classes look the same"


def test_augmentation_is_seeded_and_differs_between_images():
    image = torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8).expand(8, -1, -1, -1)
    changed = PHOTOGRAPHS(image, seed=1)
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, PHOTOGRAPHS(image, seed=1))
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(Augmentation()(image, seed=0), image)
    assert torch.equal(Augmentation(Warp(mirror=True))(image, seed=0).sort(-1).values, image.sort(-1).values)
    assert not LETTERS.warp.mirror
