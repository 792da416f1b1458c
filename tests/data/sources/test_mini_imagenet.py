"""mini-ImageNet's layouts: pickles and CSV files; pickles cannot run code."""

import pickle

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.items import SPLITS
from data.sources.mini_imagenet import load_mini_imagenet
from tests.data.conftest import red, save_image


@pytest.mark.parametrize("layout", ["cache", "category"])
def test_pickles(tmp_path, layout):
    images = np.random.default_rng(0).integers(0, 255, (3, 12, 84, 84, 3), dtype=np.uint8)
    for index, split in enumerate(SPLITS):
        if layout == "cache":
            content = {"image_data": images[index], "class_dict": {"n1": list(range(6)), "n2": list(range(6, 12))}}
            name = f"mini-imagenet-cache-{split}.pkl"
        else:
            content = {"data": images[index], "labels": [3] * 6 + [8] * 6}
            name = f"miniImageNet_category_split_{split}.pickle"
        (tmp_path / name).write_bytes(pickle.dumps(content))
    data = load_mini_imagenet(tmp_path, 84)
    for index, split in enumerate(SPLITS):
        assert data[split].counts.tolist() == [6, 6]
        assert torch.equal(data[split].items, torch.from_numpy(images[index]).permute(0, 3, 1, 2)), split


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_cannot_run_code(tmp_path, capsys):
    for split in SPLITS:
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(UserError, match="not data"):
        load_mini_imagenet(tmp_path, 84)
    assert "executed" not in capsys.readouterr().out


def test_csv(tmp_path):
    for split in SPLITS:
        rows = ["filename,label"]
        for i in range(4):
            save_image(tmp_path / "images" / f"{split}{i}", red(split, i % 2, i), suffix=".png")
            rows.append(f"{split}{i}.png,n{i % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows))
    data = load_mini_imagenet(tmp_path, 32)
    for split in SPLITS:
        assert data[split].counts.tolist() == [2, 2]
        assert data[split].items[:, 0, 9, 9].tolist() == [red(split, c, i) for c, i in ((0, 0), (0, 2), (1, 1), (1, 3))]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_mini_imagenet(tmp_path / "missing", 32)
