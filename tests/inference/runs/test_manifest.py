"""What belongs to a run is told from what does not: configuration, data, files, and who works in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.locks import locked, take
from inference.meta.options import SibOptions
from inference.runs import manifest
from inference.runs.commands import read_command
from inference.runs.files import write_atomically
from inference.runs.folder import RunFolder
from inference.runs.interruptions import working_in
from inference.runs.manifest import check_data, digest, fingerprint, verify, write_recorded
from inference.runs.options import RunOptions
from inference.runs.tensors import load_tensors, save_tensors
from tests.conftest import ROOT
from tests.inference.runs.test_study import Steps
from tests.inference.runs.test_training import Module, fit


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", "test", "way: 5")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("place", ["features", "network"])
@pytest.mark.parametrize("change", ["flipped", "another run's", "not the run's"])
def test_a_file_that_has_changed_is_one_line(place, change, run, tmp_path):
    file = getattr(run, place)
    save_tensors(file, {"w": torch.zeros(100)}, {})
    load_tensors(file)
    if change == "flipped":
        flip(file)
    elif change == "another run's":
        other = getattr(RunFolder.create(tmp_path / "other", "test", "way: 5"), place)
        os.replace(save_tensors(other, {"w": torch.ones(100)}, {}), file)
    else:
        names = json.loads(run.manifest.read_text())
        names["files"].clear()
        run.manifest.write_text(json.dumps(names))
    with pytest.raises(UserError, match=r"is damaged, or another run's: put back what this run wrote, or delete it") as error:
        load_tensors(file)
    assert "\n" not in str(error.value)
    file.unlink()
    save_tensors(file, {"w": torch.ones(100)}, {})
    assert load_tensors(file)[0]["w"].sum() == 100


def test_files_elsewhere_and_of_old_runs_are_read_as_they_are(run, tmp_path):
    shutil.copy(save_tensors(run.network, {"w": torch.zeros(3)}, {}), outside := tmp_path / "mine.safetensors")
    load_tensors(outside)
    shutil.copy(outside, inside := run.path / "mine.safetensors")
    load_tensors(inside)
    flip(run.network)
    run.manifest.unlink()
    verify(run.network)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_kill_between_manifest_and_file_leaves_a_known_file(killed, run, monkeypatch):
    save_tensors(run.network, {"w": torch.zeros(3)}, {})

    def die(*paths, replace=os.replace):
        if Path(paths[1]).name == "manifest.json":
            return replace(*paths)
        if killed == "after":
            replace(*paths)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("inference.runs.files.os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            save_tensors(run.network, {"w": torch.ones(3)}, {})
    assert load_tensors(run.network)[0]["w"].sum() == (3 if killed == "after" else 0)


def test_checkpoints_are_known_and_the_one_before_stands_in(run, capsys):
    fit(Module(), run.path, epochs=2)
    stage = run.checkpoints / "stage"
    for name in ("last.ckpt", "previous.ckpt"):
        verify(stage / name)
    flip(stage / "last.ckpt")
    module = Module()
    fit(module, run.path, epochs=2)
    assert module.validated == 1
    assert "training goes on from the checkpoint before it" in capsys.readouterr().out
    flip(stage / "previous.ckpt")
    with pytest.raises(UserError, match=r"is damaged, or another run's"):
        verify(stage / "previous.ckpt")


def test_checkpoints_of_another_run_are_one_line(run, tmp_path):
    fit(Module(), run.path, epochs=2)
    other = RunFolder.create(tmp_path / "other", "test", "way: 3")
    fit(Module(), other.path, epochs=3)
    for file in (other.checkpoints / "stage").iterdir():
        shutil.copy(file, run.checkpoints / "stage")
    with pytest.raises(
        UserError, match=r"last.ckpt cannot be resumed from \(it is damaged, or another run's\): delete"
    ) as error:
        fit(Module(), run.path, epochs=3)
    assert "\n" not in str(error.value)


def test_a_file_is_read_once_to_be_known(run, monkeypatch):
    save_tensors(run.network, {"w": torch.zeros(3)}, {})
    read = []
    monkeypatch.setattr(manifest, "digest", lambda file: (read.append(file), digest(file))[1])
    for _ in range(3):
        verify(run.network)
    assert read == [run.network]


@pytest.mark.parametrize("content", ["way: 3", "wa", ""])
def test_a_foreign_or_half_configuration_is_one_line(content, run):
    run.config.write_text(content)
    with pytest.raises(UserError, match=r"config.yaml is not what the run began with: put that back") as error:
        RunFolder.existing(run.path)
    assert "\n" not in str(error.value)
    run.manifest.unlink()
    RunFolder.existing(run.path)


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"files": 3}'])
def test_a_damaged_manifest_is_one_line(content, run):
    run.manifest.write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is (missing or )?damaged"):
        RunFolder.existing(run.path)


def data(**changes):
    items = LabelledItems(torch.arange(40.0).view(10, 4), torch.arange(10) % 2, ("a", "b"))
    return SupervisedData("some", replace(items, **changes), items)


def test_other_data_are_refused(run):
    check_data(run, data())
    check_data(run, data())
    with pytest.raises(UserError, match=r"the data are not those that .*run began with"):
        check_data(run, data(labels=torch.zeros(10, dtype=torch.int64)))


def test_the_fingerprint_is_of_everything(monkeypatch):
    items = data().train.items
    parts = [data(), data(items=items.flip(0)), data(items=items.double()), data(items=items.view(10, 2, 2))]
    parts += [data(class_names=("a", "c")), replace(data(), mirror=True), {"x": items}, {"y": items}, None, [None], [[None]]]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint(data()) == fingerprint(data(items=items.clone()))
    monkeypatch.setattr(manifest, "READ", items.nbytes // 2)  # every second row
    changed = items.clone()
    changed[4] += 1
    assert fingerprint(items) != fingerprint(changed)


def test_a_run_knows_its_data_when_it_is_resumed(tmp_path, capsys, monkeypatch):
    options = RunOptions(out=str(tmp_path / "run"))
    run = Steps(options).run()

    class Other(Steps):
        def load(self):
            return "others"

    with pytest.raises(UserError, match="the data are not those"):
        Other(options).run(RunFolder.existing(run.path))
    assert run.metrics.exists()
    monkeypatch.setattr(manifest, "__version__", "99")
    Steps(options).run(RunFolder.existing(run.path))
    assert "of Sibyl, and this is 99" in capsys.readouterr().out


def test_resume_takes_no_other_options(run):
    with pytest.raises(UserError, match="goes on with the options of that run: leave out `way`"):
        read_command(SibOptions, "svi_sib", "…", ["--resume", str(run.path), "--way", "3"])


def test_two_do_not_work_in_one_run(run):
    message = r"another process works in .*run: wait for its end"
    with working_in(run), pytest.raises(UserError, match=message), working_in(run, new=True):
        pass
    with working_in(run):
        pass


def test_a_killed_process_gives_its_lock_back_and_its_temporaries_go(run, monkeypatch):
    """A file that is not a temporary of ours stays."""
    code = "import pathlib, sys, time; from data.locks import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print(1, flush=True), time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code, run.config], cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="another process"), working_in(run):
            pass
        process.send_signal(signal.SIGKILL)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as SIGKILL leaves it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    with pytest.raises(KeyboardInterrupt):
        write_atomically(run.plots / "one.png", lambda file: (file.touch(), signal.raise_signal(signal.SIGINT)))
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert len(os.listdir(run.plots)) == 1
    (run.path / ".gitignore").touch()
    with working_in(run):
        assert not os.listdir(run.plots)
    assert (run.path / ".gitignore").exists()


def test_file_systems_without_locks_are_said(run, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(37, "No locks available")

    (run.path / ".one.0.12.png").touch()
    monkeypatch.setattr("data.locks.fcntl.flock", refuse)
    with working_in(run):
        assert (run.path / ".one.0.12.png").exists(), "it may be another's"
    assert "file system without locks" in capsys.readouterr().out


def test_of_two_that_make_a_run_one_does(run, monkeypatch):
    """Even where both have seen that there is none."""
    monkeypatch.setattr(RunFolder, "check_new", lambda run: None)
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create(run.path, "test", "way: 3")
    monkeypatch.undo()
    assert RunFolder.existing(run.path).config.read_text() == "way: 5"


def test_locks_of_folders_and_waiting(tmp_path):
    with locked(tmp_path) as held:
        assert held
        number = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            take(number, wait=False)
        os.close(number)


def test_writing_where_there_is_no_run_is_not_recorded(tmp_path):
    write_recorded(tmp_path / "file", lambda file: file.write_text("x"))
    assert os.listdir(tmp_path) == ["file"]


def test_other_processes_leave_writing_to_the_main_one_and_wait(tmp_path, monkeypatch):
    """Two that write one file could each note another content of it."""
    run = RunFolder.create(tmp_path / "run", "steps", "")
    path, written = run.checkpoints / "weights.bin", []
    monkeypatch.setattr(manifest, "is_main", lambda: False)

    def main_writes(_):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"by the main one")
        manifest.record(path, path)

    monkeypatch.setattr(manifest.time, "sleep", main_writes)
    assert manifest.write_recorded(path, written.append) == path
    assert not written
    monkeypatch.setattr(manifest, "TIMEOUT", timedelta(0))
    with pytest.raises(UserError, match="has not written"):
        manifest.wait_for(run.checkpoints / "never.bin")
