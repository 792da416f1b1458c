"""Zip archives are unpacked once, and never outside their folder."""

import zipfile

import pytest
import torch

from data.errors import UserError
from data.sources.archive import unpack
from data.sources.folder import load_folder


@pytest.fixture
def archive(tree, tmp_path):
    path = tmp_path / "tree.zip"
    with zipfile.ZipFile(path, "w") as out:
        for file in tree.rglob("*.*"):
            out.write(file, "top/" + str(file.relative_to(tree)))
    return path


def test_archive_holds_what_its_folder_holds(archive, tree):
    assert torch.equal(load_folder(archive, 16).train.items, load_folder(tree, 16).train.items)


def test_archive_is_unpacked_once(archive):
    folder = unpack(archive)
    marker = folder / "marker"
    marker.touch()
    assert unpack(archive) == folder
    assert marker.exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/../outside.txt"])
def test_members_outside_the_folder_are_refused(name, tmp_path, cache):
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as out:
        out.writestr(name, "x")
    with pytest.raises(UserError, match="unsafe"):
        unpack(evil)
    assert not list(cache.rglob("*"))


def test_links_are_refused(tmp_path, cache):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as out:
        out.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="unsafe"):
        unpack(tmp_path / "link.zip")
    assert not list(cache.rglob("*"))


def test_oversized_archives_are_refused(archive, cache, monkeypatch):
    monkeypatch.setattr("data.sources.archive.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(UserError, match="unpack it by hand"):
        unpack(archive)
    assert not list(cache.rglob("*"))


def test_damaged_archives_leave_nothing_behind(archive, tmp_path, cache):
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(damaged)
    assert not list(cache.rglob("*"))


def test_what_a_killed_unpacking_left_is_cleared(archive, cache, monkeypatch):
    def die(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", die)
        patch.setattr("data.sources.archive.shutil.rmtree", lambda *_, **__: None)  # as SIGKILL leaves it
        with pytest.raises(KeyboardInterrupt):
            unpack(archive)
    (left,) = cache.iterdir()
    other = cache / ".another-archive"
    other.mkdir()
    assert sorted(cache.iterdir()) == sorted([other, left])
    assert sorted([unpack(archive), other]) == sorted(cache.iterdir())
