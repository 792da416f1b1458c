"""Zip archives are unpacked once, and never outside their folder."""

import os
import shutil
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


def spoil_stream(content):
    start = content.index(b"one.txt") + len("one.txt")
    return content[:start] + b"\xff" * 8 + content[start + 8 :]


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_stream,
        lambda content: content.replace("é.txt".encode(), b"\xff\xfe.txt"),  # said to be UTF-8
        lambda content: content.replace("é.txt".encode(), b"\0\0.txt"),
        lambda content: content.replace(b"PK\x01\x02", b"PK\x09\x09"),
        lambda content: content[:30],
    ],
)
def test_corrupt_streams_and_names_are_refused_in_one_line_and_leave_nothing(tmp_path, cache, spoil):
    path = tmp_path / "corrupt.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("one.txt", "text " * 100)
        out.writestr("é.txt", "x")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"corrupt\.zip (cannot be unpacked|holds an unsafe entry)") as error:
        unpack(path)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*"))


def test_a_cache_that_cannot_be_written_to_is_named(archive, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("data.sources.archive.tempfile.TemporaryFile", refuse)
        with pytest.raises(UserError, match=r"the cache folder .*cache: Read-only file system; set the env.* SIBYL_CACHE"):
            unpack(archive)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIBYL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"the cache folder .*file: File exists; set"):
        unpack(archive)


def test_an_archive_may_have_any_name(archive, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff" + 200 * b"a" + b".zip")
    shutil.copy(archive, odd)
    assert load_folder(odd, 16).train.num_classes == 3


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
