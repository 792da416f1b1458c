"""SIGINT and SIGTERM: what they raise, what a command says and exits with, what stays behind."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import UserError
from inference.runs import commands, interruptions
from inference.runs.commands import run_command
from inference.runs.files import MEMORY, Unfinished
from inference.runs.folder import RunFolder
from inference.runs.interruptions import Terminated, last_words, nothing_lost, terminable, terminate, working_in
from inference.runs.options import RunOptions
from inference.runs.training import SharedTraining
from tests.inference.runs.test_study import Steps
from tests.inference.runs.test_training import Module, fit


@pytest.fixture(autouse=True)
def pythons_own_sigint():
    """What runs in the background of a shell has been told to ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


BOTH = [(signal.SIGTERM, Terminated, "terminated", 143), (signal.SIGINT, KeyboardInterrupt, "interrupted", 130)]


@pytest.mark.parametrize(("number", "raised"), [row[:2] for row in BOTH])
def test_an_interruption_passes_through_lightning(number, raised, tmp_path):
    """Which makes an exit with code 1 or 0 of it; afterwards both signals do what they did before."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    module = Module(lambda step, loss: signal.raise_signal(number) or loss if step == 25 else loss)
    with pytest.raises(raised), terminable():
        fit(module, tmp_path)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert module.global_step == 25, "at once"
    module.spoil = Module().spoil
    fit(module, tmp_path)
    assert module.weight.item() == pytest.approx(0.8**60)


@pytest.mark.parametrize(("number", "raised", "name", "status"), BOTH)
@pytest.mark.parametrize("step", ["load", "check", "fit", "evaluate", "first"])
def test_every_stage_ends_with_a_line_and_a_code(number, raised, name, status, step, tmp_path, capsys):
    """Pictures too, whose other failures cost themselves alone."""

    class Interrupted(Steps):
        def step(self, name, result=None):
            if name == step:
                signal.raise_signal(number)
            return super().step(name, result)

    out = tmp_path / "runs" / "run"
    with pytest.raises(SystemExit) as ended:
        run_command(lambda _: Interrupted(RunOptions(out=str(out))).run())
    assert ended.value.code == status
    begun = step not in ("load", "check")
    how = f"continue with --resume {out}" if begun else "nothing is left behind, start again"
    assert capsys.readouterr().err == f"{name}: {how}\n"
    assert out.exists() == begun
    assert bool(list(tmp_path.iterdir())) == begun


def test_a_resumed_run_says_so_too_while_it_loads(tmp_path, capsys):
    run = RunFolder.create(tmp_path / "run", "steps", "")
    with pytest.raises(SystemExit):
        run_command(lambda _: Steps(RunOptions(), broken="load", error=KeyboardInterrupt).run(run))
    assert capsys.readouterr().err == f"interrupted: continue with --resume {run.path}\n"


@pytest.mark.parametrize(("number", "raised"), [row[:2] for row in BOTH])
def test_a_second_signal_does_not_break_into_the_end_of_the_first(number, raised):
    def twice():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)

    with pytest.raises(raised) as found, terminable():
        twice()
    assert found.value.__context__ is None


@pytest.mark.parametrize(("number", "raised"), [row[:2] for row in BOTH])
def test_one_that_comes_much_later_does(number, raised, monkeypatch):
    """The first may have been lost, or what it made us do may hang."""
    with terminable():
        for now in (0.0, interruptions.AGAIN + 1):
            monkeypatch.setattr(interruptions.time, "monotonic", lambda now=now: now)
            with pytest.raises(raised):
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "raised"), [row[:2] for row in BOTH])
def test_a_signal_that_strikes_a_destructor_is_not_lost(number, raised, capsys):
    """Python prints what a destructor raises, and goes on; what it left half made says nothing until the signal is back."""

    class Struck:
        def __del__(self):
            os.kill(os.getpid(), number)

    class HalfMade:
        def __del__(self):
            del self.never_set

    def strike():
        Struck()
        HalfMade()
        time.sleep(5)

    with pytest.raises(raised), terminable(), nothing_lost():
        strike()
    assert capsys.readouterr().err == ""


def test_what_an_interruption_leaves_half_made_says_nothing(capsys):
    class HalfMade:
        def __del__(self):
            del self.never_set

    def strike():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            HalfMade()

    with pytest.raises(KeyboardInterrupt), terminable(), nothing_lost():
        strike()
    assert capsys.readouterr().err == ""


def test_what_the_interruption_itself_holds_says_nothing_either(monkeypatch, capsys):
    class HalfMade:
        def __init__(self):
            signal.raise_signal(signal.SIGTERM)
            self.set_too_late = 1

        def __del__(self):
            del self.set_too_late

    monkeypatch.setattr(commands.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(commands.os, "_exit", lambda status: print(status))
    before = signal.getsignal(signal.SIGINT)
    commands.run_process(lambda _: HalfMade())
    signal.signal(signal.SIGINT, before)
    said = capsys.readouterr()
    assert said.out == "143\n"
    assert said.err == "terminated: nothing is left behind, start again\n"


def test_last_words_are_one_line_whatever_the_folder_is_called():
    assert last_words(KeyboardInterrupt("continue with --resume a\nb")) == ("interrupted: continue with --resume a\\nb", 130)


def test_a_handler_of_the_users_own_stays(capsys):
    own = signal.signal(signal.SIGINT, print)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGINT) is print
    finally:
        signal.signal(signal.SIGINT, own)


def test_threads_have_no_signals():
    seen = []

    def inside():
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_under_torchrun_the_command_keeps_its_handler():
    """Lightning's would talk to the other processes, of which one may be dead."""
    before = signal.signal(signal.SIGTERM, type("Composed", (), {"signal_handlers": [print, terminate], "__call__": print})())
    try:
        SharedTraining().on_train_start()
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "trained", "new", "kept"),
    [
        (UserError, False, True, False),
        (UserError, True, True, True),
        (UserError, False, False, True),
        (Unfinished, False, True, True),
        (RuntimeError, False, True, True),  # a fault of ours, to be looked into
    ],
)
def test_a_refusal_leaves_nothing_behind(error, trained, new, kept, tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "run", "test", "seed: 0")
    with run.timed("stage"):
        (run.path / "logs").mkdir()
    if trained:
        (run.checkpoints / "stage").mkdir()
        (run.checkpoints / "stage/last.ckpt").write_text("weights")
    with pytest.raises(error), working_in(run, new=new):
        raise error
    assert bool(list(tmp_path.iterdir())) == kept


def test_a_refusal_leaves_files_of_others_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError), working_in(RunFolder.create(tmp_path, "test", "seed: 0"), new=True):
        raise UserError
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "pictures"]


def test_a_run_that_is_there_stays_where_another_is_refused(tmp_path):
    run = RunFolder.create(tmp_path / "run", "test", "seed: 0")
    before = sorted(run.path.iterdir())
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create(run.path, "test", "seed: 1")
    assert sorted(run.path.iterdir()) == before
    assert RunFolder.existing(run.path).config.read_text() == "seed: 0"


@pytest.mark.parametrize("trained", [True, False])
def test_a_run_that_cannot_be_continued_does_not_say_that_it_can(trained, tmp_path, capsys):
    def main(_):
        run = RunFolder.create(tmp_path / "run", "test", "")
        with working_in(run, new=True, resumes=False):
            if trained:
                run.checkpoints.mkdir()
                (run.checkpoints / "stage.safetensors").write_text("weights")
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_command(main)
    how = (
        f"{tmp_path / 'run'} cannot be continued: delete it, and start again"
        if trained
        else "nothing is left behind, start again"
    )
    assert capsys.readouterr().err == f"interrupted: {how}\n"
    assert (tmp_path / "run").exists() == trained


ARRAYS = {
    "torch": lambda: torch.empty(2**60),
    "overflow": lambda: torch.empty(2**40, 2**40),
    "numpy": lambda: np.empty(2**60),
    "a list": lambda: [0] * 2**60,
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=list(ARRAYS))
@pytest.mark.parametrize("trained", [True, False])
def test_too_little_memory_is_one_line(make, trained, tmp_path, capsys):
    def main(_):
        with working_in(RunFolder.create(tmp_path / "run", "test", ""), new=True):
            if trained:
                (tmp_path / "run/checkpoints").mkdir()
                (tmp_path / "run/checkpoints/stage.safetensors").write_text("weights")
            make()

    with pytest.raises(UserError, match=MEMORY):
        main(None)
    assert (tmp_path / "run").exists() == trained
    with pytest.raises(SystemExit) as ended:
        run_command(lambda _: make())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {MEMORY.replace('`batch`', '--batch')}\n"


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "loop/below"])
def test_a_path_that_the_system_refuses_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit) as ended:
        run_command(lambda _: Path(name).read_text())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name}: ")
    assert said.count("\n") == 1
