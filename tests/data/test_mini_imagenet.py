"""The conversion of mini-ImageNet's pickles: both layouts, and what a pickle may not ask for."""

import collections
import os
import pickle
import shutil

import numpy as np
import pytest

from data.errors import UserError
from data.items import SPLITS
from data.locks import locked
from data.mini_imagenet import convert, main, read_pickle
from data.sources.mini_imagenet import load_mini_imagenet

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Evil:
    """A pickle that runs code."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def write(folder, pattern, content, protocol=2):
    for number, split in enumerate(SPLITS):
        (folder / pattern.format(split)).write_bytes(pickle.dumps(content(split, IMAGES + np.uint8(number)), protocol))


CACHE = (
    "mini-imagenet-cache-{}.pkl",
    lambda split, x: {"image_data": x, "class_dict": {f"{split}-b": [2, 0], f"{split}-a": [1, 3]}},
)
CATEGORIES = (
    "miniImageNet_category_split_{}.pickle",
    lambda split, x: {"data": x[[1, 3, 2, 0]], "labels": [f"{split}-a", f"{split}-a", f"{split}-b", f"{split}-b"]},
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", [CACHE, CATEGORIES])
def test_both_layouts_become_the_folder_that_is_read(tmp_path, layout, protocol, capsys):
    write(tmp_path, *layout, protocol=protocol)
    assert main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert "train" in capsys.readouterr().out
    data = load_mini_imagenet(tmp_path / "out", 8)
    for number, split in enumerate(SPLITS):
        assert data[split].class_names == (f"{split}-a", f"{split}-b")
        expected = (IMAGES + np.uint8(number))[[1, 3, 2, 0]].transpose(0, 3, 1, 2)
        assert (data[split].items.numpy() == expected).all()


def test_what_a_killed_conversion_left_is_cleared(tmp_path, monkeypatch):
    """That of another folder stays, of one that a process works at, and of one that it may be working at."""
    write(tmp_path, *CACHE)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.mini_imagenet.write_split", die)
        patch.setattr("data.mini_imagenet.shutil.rmtree", lambda *_, **__: None)  # as SIGKILL leaves it
        for name in ("out", "other"):
            with pytest.raises(KeyboardInterrupt):
                convert(tmp_path, tmp_path / name)
    left = {folder.name.partition("-half-converted-")[0]: folder for folder in tmp_path.glob(".*-half-converted-*")}
    assert left.keys() == {".out", ".other"}
    with locked(left[".out"]):
        convert(tmp_path, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("data.locks.take", lambda number, wait: False)  # a file system without locks
        convert(tmp_path, tmp_path / "out")
    assert left[".out"].exists()
    shutil.rmtree(tmp_path / "out")
    convert(tmp_path, tmp_path / "out")
    assert list(tmp_path.glob(".*")) == [left[".other"]]


def test_labels_that_are_numbers_of_numpy_are_read(tmp_path):
    write(
        tmp_path, "{}.pkl", lambda split, x: {"data": np.asfortranarray(x), "labels": np.arange(4) + 10 * SPLITS.index(split)}
    )
    convert(tmp_path, tmp_path / "out")
    assert load_mini_imagenet(tmp_path / "out", 8).val.class_names == ("10", "11", "12", "13")


def flagged(flags):
    """A pickle of one array whose type has ``flags`` that turn its bytes into pointers."""

    class Flagged:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, flags)

    class Array:
        def __reduce__(self):
            make = np.core.multiarray._reconstruct if hasattr(np, "core") else np._core.multiarray._reconstruct
            return make, (np.ndarray, (0,), b"b"), (1, (1,), Flagged(), False, b"\x41" * 8)

    return {"data": Array(), "labels": [0]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), r"it asks for (posix|nt).mkdir, which is no data"),
        (flagged(63), "it has an array of 'O8'"),
        (collections.OrderedDict(a=1), "it asks for collections.OrderedDict"),
        ({"data": np.array([1.5]), "labels": [0]}, "it has an array of 'f8'"),
        ({"data": IMAGES[0], "labels": [0] * 8}, "its images are uint8 8×8×3, not"),
        ({"data": IMAGES, "labels": [0]}, "4 images and 1 labels"),
        ({"image_data": IMAGES, "class_dict": {"a": [7]}}, "class a has an image 7, and there are 4"),
        ({"image_data": IMAGES, "class_dict": {"../a": [0]}}, "'../a' cannot be a folder's name"),
        ({"other": 1}, "neither image_data with class_dict nor data with labels"),
    ],
)
def test_pickles_of_anything_else_are_refused_in_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "{}.pkl", lambda *_: content)
    with pytest.raises(UserError, match=r"train\.pkl is not converted: .*" + message):
        convert(tmp_path, tmp_path / "out")
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["test.pkl", "train.pkl", "val.pkl"]


def test_no_state_is_set_of_what_is_no_array(tmp_path):
    """Else a file could change the stand-ins themselves."""
    file = tmp_path / "x.pkl"
    file.write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b.")
    with pytest.raises(UserError, match="it changes what is no array"):
        read_pickle(file)


@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"no pickle", pickle.dumps(IMAGES, 2)[:-40]])
def test_damaged_pickles_are_named(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pkl is (damaged|not converted)"):
        read_pickle(tmp_path / "x.pkl")


def test_other_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="has no pickles of train, val and test"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is there already: give a new folder"):
        convert(tmp_path, tmp_path)
