"""Many images are decoded once, into a file that is whole or not there."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from data.errors import UserError
from data.sources import folder
from data.sources.folder import load_folder
from tests.data.conftest import save_image


@pytest.fixture
def decoded(monkeypatch):
    """All images count as many; the files that are decoded."""
    monkeypatch.setattr(folder, "IN_MEMORY", 1000)
    read, found = folder.read_image, []

    def counted(path, **how):
        found.append(path)
        return read(path, **how)

    monkeypatch.setattr(folder, "read_image", counted)
    return found


def test_images_are_decoded_once_and_equal_those_in_memory(tree, cache, decoded, monkeypatch):
    first = load_folder(tree, 16)
    assert len(decoded) == 28
    assert [file.stat().st_size for file in cache.iterdir()] == [28 * 3 * 16 * 16]
    again = load_folder(tree, 16)
    assert len(decoded) == 28, "none is decoded again"
    monkeypatch.setattr(folder, "IN_MEMORY", 2**28)
    in_memory = load_folder(tree, 16)
    assert len(decoded) == 56
    for split in first.splits:
        assert torch.equal(first[split].items, in_memory[split].items)
        assert torch.equal(again[split].items, in_memory[split].items)


def test_what_changes_images_decodes_them_anew(tree, cache, decoded):
    load_folder(tree, 16)
    load_folder(tree, 15)
    save_image(tree / "train/train0/0", 250)
    os.utime(tree / "train/train0/0.png", (1, 1))
    assert int(load_folder(tree, 16).train.items[0, 0, 8, 8]) == 250
    assert len(decoded) == 3 * 28
    file = max(cache.iterdir(), key=os.path.getmtime)
    file.write_bytes(file.read_bytes()[:-5])
    assert int(load_folder(tree, 16).train.items[0, 0, 8, 8]) == 250, "a damaged file is written again"
    assert len(decoded) == 4 * 28


def test_an_image_of_the_same_size_and_time_is_another_and_so_is_another_pillow(tree, cache, decoded, monkeypatch):
    image = tree / "train/train0/0.bmp"
    save_image(image, 10, suffix=".bmp")
    before = image.stat()
    load_folder(tree, 16)
    save_image(image, 250, suffix=".bmp")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert 250 in load_folder(tree, 16).train.items[:, 0, 8, 8]
    monkeypatch.setattr("PIL.__version__", "0.0")
    load_folder(tree, 16)
    assert len(decoded) == 3 * 29


def test_a_third_of_colour_images_is_no_grey_ones(tree, cache, decoded):
    whole = load_folder(tree, 16).train.items.clone()  # for the file goes
    (file,) = cache.iterdir()
    os.truncate(file, file.stat().st_size // 3)
    assert torch.equal(load_folder(tree, 16).train.items, whole)


def test_gray_images_have_one_channel(tmp_path, decoded):
    for c in range(3):
        save_image(tmp_path / f"gray/{c}/0", 9 * c, size=(40, 40), mode="L")
    for _ in range(2):
        assert load_folder(tmp_path / "gray", 40).image_shape == (1, 40, 40)
    assert len(decoded) == 3


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tree, cache, decoded, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
        with pytest.raises(UserError, match=r"no room .* cache folder .*cache \(10 bytes free\): set .* SIBYL_CACHE"):
            load_folder(tree, 16)
        assert not decoded, "before any is decoded"

    def full(*whatever):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data.cache.write", full)
    with pytest.raises(UserError, match=r"images-\w+-rgb\.uint8: No space left on device; set .* SIBYL_CACHE"):
        load_folder(tree, 16)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("data.cache.mapped", "No such device"),  # a file system that maps nothing
        ("os.replace", "No such file or directory"),  # the file went before it was mapped
    ],
)
def test_images_that_cannot_be_mapped_are_said_in_one_line(tree, cache, decoded, monkeypatch, broken, said):
    def refused(*whatever):
        if broken == "data.cache.mapped":
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(broken, refused)
    with pytest.raises(UserError, match=rf"cannot keep the decoded images in .*\.uint8: {said}; set .* SIBYL_CACHE"):
        load_folder(tree, 16)


def test_a_folder_of_the_file_s_name_is_said_before_any_is_decoded(tree, cache, decoded):
    load_folder(tree, 16)
    (file,) = cache.iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"-rgb\.uint8: Is a directory; set"):
        load_folder(tree, 16)
    assert len(decoded) == 28


def test_what_a_killed_process_left_is_taken_away(tree, cache, decoded):
    load_folder(tree, 16)
    (file,) = cache.iterdir()
    file.unlink()
    (cache / f".{file.stem}-left").write_bytes(b"half of it")
    (cache / ".images-of-another").write_bytes(b"half of it")
    load_folder(tree, 16)
    assert sorted(path.name for path in cache.iterdir()) == [".images-of-another", file.name]


def test_an_unreadable_image_is_named_and_leaves_nothing(tree, cache, decoded):
    broken = tree / "val/val0/1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read the image .*1\.jpg"):
        load_folder(tree, 16)
    assert not list(cache.iterdir())
