"""What is read of a user's folders: links, pipes and devices."""

import os

import pytest

from data.errors import UserError
from data.files import DEEPEST, check_plain, files_below


def found(folder):
    return [str(file.relative_to(folder)) for file in files_below(folder, {".png"})]


@pytest.fixture
def folder(tmp_path):
    for name in ("a/0.png", "b/1.png", "b/notes.txt", ".hidden/2.png", "__MACOSX/3.png", "b/.4.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


def test_hidden_files_and_other_suffixes_are_passed_by(folder):
    assert found(folder) == ["a/0.png", "b/1.png"]


def test_links_are_followed_and_those_to_folders_around_them_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "5.png").touch()
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "loop").symlink_to(folder)
    assert found(folder) == ["a/0.png", "b/1.png", "c/5.png"]


@pytest.mark.parametrize("target", ["b", "b/1.png/nothing", "linked"])
def test_links_to_a_folder_that_is_there_already_or_to_nothing_are_named(folder, target):
    (folder / "linked").symlink_to(folder / target)
    with pytest.raises(UserError, match=r"linked and .*b are one folder|linked is a link that leads nowhere"):
        found(folder)


def test_folders_that_cannot_be_read_are_named(folder, monkeypatch):
    scan = os.scandir

    def refuse(place):
        if str(place).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr("data.files.os.scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*b: Permission denied"):
        found(folder)


def test_pipes_and_devices_are_named_and_never_opened(folder):
    os.mkfifo(folder / "a" / "notes")
    assert len(found(folder)) == 2
    os.mkfifo(folder / "a" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is a pipe: give a file"):
        found(folder)
    (folder / "a" / "pipe.png").unlink()
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"zero\.png is a device: give a file"):
        found(folder)
    with pytest.raises(UserError, match="is a folder: give a file"):
        check_plain(folder)


def test_folders_deeper_than_anyone_wants_are_refused(tmp_path):
    (tmp_path / "/".join("d" * (DEEPEST + 1))).mkdir(parents=True)
    with pytest.raises(UserError, match=f"more than {DEEPEST} folders stand inside one another"):
        found(tmp_path)
