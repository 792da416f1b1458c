"""mini-ImageNet's layouts: CSV files; pickles, which could run code, are not read."""

import pickle

import pytest

from data.errors import UserError
from data.items import SPLITS
from data.sources.mini_imagenet import load_mini_imagenet
from tests.data.conftest import red, save_image


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("name", ["mini-imagenet-cache-{}.pkl", "miniImageNet_category_split_{}.pickle", "{}.pkl"])
def test_pickles_are_named_and_not_read(tmp_path, capsys, name):
    for split in SPLITS:
        (tmp_path / name.format(split)).write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(UserError, match=r"holds pickles .*: give folders train/, val/, test/ of class folders") as error:
        load_mini_imagenet(tmp_path, 84)
    assert "\n" not in str(error.value)
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
