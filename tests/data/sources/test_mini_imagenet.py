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


def lists(root, *, header="filename,label", extra="", encoding="utf-8"):
    """``images/`` and a list of each split, two classes of two images in each; ``extra`` is a last line of train.csv."""
    for split in SPLITS:
        rows = [header]
        for i in range(4):
            save_image(root / "images" / f"{split}{i}", red(split, i % 2, i), suffix=".png")
            rows.append(f"{split}{i}.png,{split}-n{i % 2}")
        rows += [extra] if split == "train" and extra else []
        (root / f"{split}.csv").write_bytes("\n".join(rows).encode(encoding))
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path, encoding):
    data = load_mini_imagenet(lists(tmp_path, encoding=encoding), 32)
    for split in SPLITS:
        assert data[split].class_names == (f"{split}-n0", f"{split}-n1")
        assert data[split].counts.tolist() == [2, 2]
        assert data[split].items[:, 0, 9, 9].tolist() == [red(split, c, i) for c, i in ((0, 0), (0, 2), (1, 1), (1, 3))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": "/etc/passwd,x"}, r"train\.csv, line 6: /etc/passwd is not in images/"),
        ({"extra": "../images/train0.png,x"}, r"train\.csv, line 6: \.\..* is not in images/"),
        ({"extra": "train0.png"}, r"train\.csv, line 6: give a filename and a label"),
        ({"extra": "nowhere.png,x"}, r"nowhere\.png: No such file"),
        ({"extra": "a\0.png,x"}, "cannot read the image|cannot be read as a table"),
        ({"extra": "test0.png,test-n0"}, "the class test-n0 in train and in test"),
        ({"extra": f"{'a' * 200_000},x"}, "cannot be read as a table"),
        ({"header": "file,class"}, r"train\.csv lacks the columns filename and label"),
        ({"encoding": "utf-16"}, r"train\.csv cannot be read as a table"),
    ],
)
def test_lists_that_lead_elsewhere_or_are_damaged_are_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        load_mini_imagenet(lists(tmp_path, **change), 8)
    assert "\n" not in str(error.value)


def test_a_list_of_nothing_is_refused(tmp_path):
    lists(tmp_path)
    (tmp_path / "val.csv").write_text("filename,label\n")
    with pytest.raises(UserError, match=r"val\.csv lists no images"):
        load_mini_imagenet(tmp_path, 8)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_mini_imagenet(tmp_path / "missing", 32)
