"""Files on disks that take no more, and what is said then."""

import errno
import os
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import arviz
import pytest
import torch

from data.errors import UserError
from inference.evaluation.arviz import most_bytes, write_netcdf
from inference.runs.commands import run_command
from inference.runs.files import Unfinished, check_out, no_room, reserve, sole_writer, write_json, writing
from inference.runs.folder import RunFolder
from inference.runs.interruptions import nothing_lost, working_in
from inference.runs.study import draw_all
from inference.runs.tensors import save_tensors


@contextmanager
def at_most(size):
    """A block in which no file grows beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def content():
    values = torch.randn(4, 50, 30).numpy()
    return arviz.from_dict(posterior={"w": values}, coords={"item": [f"item {i}" for i in range(30)]}, dims={"w": ["item"]})


def full(words="of a library"):
    error = RuntimeError(words)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "voll"), "No space left on device"),
        (OSError(errno.EDQUOT, ""), "Disk quota exceeded"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (full(), "No space left on device"),
        (OSError(errno.EACCES, "no"), None),
        (RuntimeError("no"), None),
    ],
)
def test_a_full_disk_is_known_whoever_tells_of_it(error, said):
    assert no_room(error) == said


@pytest.mark.parametrize("write", ["json", "tensors", "netcdf"])
def test_a_file_that_does_not_fit_leaves_the_old_one(write, content, tmp_path):
    """HDF5 would end the process."""
    path = tmp_path / "file"
    writers = {
        "json": lambda: write_json(path, list(range(10_000))),
        "tensors": lambda: save_tensors(path, {"w": torch.zeros(10_000)}, {}),
        "netcdf": lambda: write_netcdf(content, path),
    }
    path.write_text("old")
    with at_most(9_000), pytest.raises(Exception) as error:  # noqa: PT011
        writers[write]()
    assert no_room(error.value) == "File too large"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    writers[write]()
    assert path.stat().st_size > 9_000


def test_room_is_reserved_for_all_of_a_posterior(content, tmp_path):
    assert write_netcdf(content, tmp_path / "posterior.nc").stat().st_size <= most_bytes(content)
    with at_most(1000):
        reserve(tmp_path / "fits", 1000)
        assert (tmp_path / "fits").stat().st_size == 0
        with pytest.raises(OSError, match="too large"):
            reserve(tmp_path / "does not", 1001)


@pytest.mark.parametrize(("resumes", "then"), [(True, "continue with --resume {}"), (False, "start again")])
def test_a_full_disk_is_one_line_and_the_run_stays(resumes, then, tmp_path, capsys):
    run = RunFolder.create(tmp_path / "run", "test", "seed: 0")

    def main(_):
        with working_in(run, new=True, resumes=resumes):
            raise full()

    with pytest.raises(Unfinished, match="No space left on device: make room, then "):
        main(None)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    said = then.format(run.path) if not resumes else f"continue with `resume={run.path}`"
    assert capsys.readouterr().err == f"error: {run.path}: No space left on device: make room, then {said}\n"
    assert run.config.exists()


def test_outside_of_runs_too(capsys):
    def main(_):
        raise full()

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: No space left on device: make room, and start again\n"


def test_a_picture_that_does_not_fit_is_not_passed_over(tmp_path):
    def draw():
        raise full()

    for figures in (draw, lambda: {"one": draw}):
        with pytest.raises(RuntimeError):
            draw_all(figures, tmp_path)


def test_a_thread_says_nothing_of_a_full_disk(monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda found: said.append(str(found.exc_value)))

    def fail(error):
        raise error

    with nothing_lost():
        for error in (full("first"), RuntimeError("second")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
    assert said == ["second"]


def test_what_a_kill_left_of_a_file_outside_of_runs_is_cleared(tmp_path, monkeypatch):
    """Other files stay, and all of it where another process may still be writing."""
    names = {".a[1].0.12.json", ".a[1].0.13", ".a[1].txt", ".a1.0.12.json", "a[1].0.12.json"}
    for name in names:
        (tmp_path / name).touch()
    with monkeypatch.context() as patch:
        patch.setattr("data.locks.take", lambda number, wait: False)  # a file system without locks
        with sole_writer(tmp_path, "a[1].json"):
            assert set(os.listdir(tmp_path)) == names
    with sole_writer(tmp_path, "a[1].json"):
        assert set(os.listdir(tmp_path)) == names - {".a[1].0.12.json", ".a[1].0.13"}
    with sole_writer(tmp_path):
        assert set(os.listdir(tmp_path)) == {".a[1].txt", "a[1].0.12.json"}


def test_a_name_that_is_no_text_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="its name is no text in UTF-8"):
        check_out(Path("\udcff\udcfe"))
    assert not list(tmp_path.iterdir())


def test_a_root_is_no_file_to_write():
    with pytest.raises(UserError, match="cannot write to /: Is a directory"), writing(Path("/")):
        write_json(Path("/"), {})
