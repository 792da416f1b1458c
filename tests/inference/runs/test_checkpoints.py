"""Checkpoints: whole or absent on every file system, the one before kept, resumed from as if nothing had happened."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from data.errors import UserError
from inference.runs import files
from inference.runs.checkpoints import WholeCheckpoints, start_of
from inference.runs.folder import RunFolder
from inference.runs.training import Loop, train
from tests.inference.runs.test_training import Module, fit, saved


class Watched(Module):
    """Its score is best at the end of the second epoch."""

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("score", (self.weight.detach() - 0.8**40).abs())


def watch(module, path, epochs, patience=0):
    train(module, Loop("cpu"), RunFolder(path), "stage", epochs=epochs, monitor="score", patience=patience)


def stop_in_third_epoch(step, loss):
    if step == 45:
        raise KeyboardInterrupt
    return loss


@pytest.fixture
def stage(tmp_path):
    """The folder of a stage that was interrupted in its third epoch."""
    with pytest.raises(KeyboardInterrupt):
        fit(Module(stop_in_third_epoch), tmp_path)
    return tmp_path / "checkpoints" / "stage"


def test_the_checkpoint_before_the_last_stays(stage):
    first, second = (torch.load(stage / name, weights_only=True) for name in ("previous.ckpt", "last.ckpt"))
    assert [first["global_step"], second["global_step"]] == [20, 40]
    assert sorted(file.name for file in stage.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("damage", [None, "truncated", "emptied", "lost"])
def test_a_damaged_checkpoint_costs_no_more_than_an_epoch(damage, stage, tmp_path, capsys):
    last = stage / "last.ckpt"
    if damage == "lost":  # killed between two renamings
        last.unlink()
    elif damage:
        last.write_bytes(last.read_bytes()[: 500 if damage == "truncated" else 0])
    module = Module()
    fit(module, tmp_path)
    assert module.weight.item() == pytest.approx(0.8**60)
    assert module.validated == (1 if damage is None else 2)
    said = capsys.readouterr().out
    if damage in ("truncated", "emptied"):
        assert said == f"note: {last} is damaged: training goes on from the checkpoint before it\n"
    else:
        assert not said


def test_where_none_is_whole_a_line_says_what_to_do(stage, tmp_path):
    for file in stage.iterdir():
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"last.ckpt cannot be resumed from \(.*\): delete .*stage to train") as error:
        fit(Module(), tmp_path)
    assert "\n" not in str(error.value)


def test_another_configuration_is_one_line(stage, tmp_path):
    class Other(Module):
        def __init__(self):
            super().__init__()
            self.more = nn.Parameter(torch.ones(()))

    with pytest.raises(UserError, match=r"last.ckpt cannot be resumed from \(.*\): delete") as error:
        fit(Other(), tmp_path)
    assert "\n" not in str(error.value)

    class Another(Module):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters()), torch.optim.Adam(self.parameters())

    with pytest.raises(UserError, match="cannot be resumed"):
        fit(Another(), tmp_path)


def test_errors_of_training_itself_are_not_laid_on_the_checkpoint(stage, tmp_path):
    def out_of_memory(step, loss):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError) as error:
        fit(Module(out_of_memory), tmp_path)
    assert str(error.value) == "out of memory"


def test_nothing_is_written_outside_the_run_folder(tmp_path, monkeypatch):
    """A checkpoint that is copied from another file system is half there while it is copied."""
    (elsewhere := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    opened = []
    monkeypatch.setattr(files.os, "replace", lambda old, new, replace=files.os.replace: (opened.append(old), replace(old, new)))
    fit(Module(), tmp_path / "run", epochs=1)
    assert {Path(file).parent for file in opened} == {tmp_path / "run/checkpoints/stage"}
    assert not list(elsewhere.iterdir())


def test_a_write_that_does_not_fit_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    fit(Module(), tmp_path, epochs=1)

    def half(file, content, write=Path.write_bytes):
        write(file, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        fit(Module(), tmp_path, epochs=2)
    monkeypatch.undo()
    assert saved(tmp_path) == pytest.approx(0.8**20)
    assert [file.name for file in (tmp_path / "checkpoints/stage").iterdir()] == ["last.ckpt"]
    fit(Module(), tmp_path, epochs=2)
    assert saved(tmp_path) == pytest.approx(0.8**40), "it goes on once there is room"


def test_a_write_that_comes_back_changed_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    fit(Module(), tmp_path, epochs=1)
    monkeypatch.setattr(
        Path, "write_bytes", lambda file, content, write=Path.write_bytes: write(file, bytes(content)[:-1] + b"x")
    )
    with pytest.raises(OSError, match="does not hold what was written"):
        fit(Module(), tmp_path, epochs=2)
    assert saved(tmp_path) == pytest.approx(0.8**20)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": shutil.rmtree}, file)
    with pytest.raises(UserError, match="cannot be resumed from"):
        start_of(tmp_path, Module())
    with pytest.raises(Exception, match="Weights only"):
        WholeCheckpoints().load_checkpoint(file, weights_only=False)


def test_the_best_epoch_is_remembered_where_the_folder_has_moved(tmp_path):
    watch(Watched(), tmp_path / "here", epochs=3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    module = Watched()
    watch(module, tmp_path / "there", epochs=4)
    assert module.validated == 1
    assert module.weight.item() == pytest.approx(0.8**40)
    assert not (tmp_path / "here").exists()


def test_lost_patience_stays_lost(tmp_path):
    """Where a run is killed after a stage has stopped early and before its result is written."""
    for validated in (4, 0):
        module = Watched()
        watch(module, tmp_path, epochs=9, patience=2)
        assert module.validated == validated
        assert module.weight.item() == pytest.approx(0.8**40)


def test_a_pipe_is_no_checkpoint_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt is a pipe: give a file"):
        start_of(tmp_path, Module())
