"""Interruptions: what SIGINT and SIGTERM do to a command, and to training under Lightning."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import SIGTERMException

from data.errors import UserError, readable
from data.locks import locked
from inference.runs import beginning
from inference.runs.files import Unfinished, no_room, plainly, writing
from inference.runs.folder import RunFolder
from inference.runs.processes import agree


class Terminated(BaseException):
    """SIGTERM has arrived, as ``KeyboardInterrupt`` says of SIGINT.

    It is no ``Exception``, so that no block that copes with errors takes it for one; and no ``KeyboardInterrupt``,
    which Lightning makes an end of the process with exit code 1 of.
    """


INTERRUPTIONS = (KeyboardInterrupt, Terminated)


AGAIN = 5.0
"""Seconds in which a second signal of a kind does not break into what the first one makes us do."""
struck: dict[int, float] = {}
"""Signal -> when it last raised something."""


def terminate(number: int, frame: Any) -> None:
    """The handler of SIGTERM in a command; Python calls it with the signal's ``number`` and the ``frame`` that it broke into.

    Raises:
        Terminated: but for a second one soon after.
    """
    if is_first(number):
        raise Terminated


def interrupt(number: int, frame: Any) -> None:
    """The handler of SIGINT in a command; ``number`` and ``frame`` as for :func:`terminate`.

    Raises:
        KeyboardInterrupt: but for a second one soon after.
    """
    if is_first(number):
        raise KeyboardInterrupt


def is_first(number: int) -> bool:
    """Whether no signal of this ``number`` was here in the last seconds."""
    now, before = time.monotonic(), struck.get(number, -AGAIN)
    if now - before < AGAIN:
        return False
    struck[number] = now
    return True


@contextmanager
def terminable() -> Iterator[None]:
    """A block in which SIGTERM raises :class:`Terminated`, and SIGINT ``KeyboardInterrupt``, so that what is open is closed and
    temporary files go; only where the main thread runs it, for others have no signals. Where SIGINT is ignored, as in the
    background of a shell, or has a handler of the user's, it stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    struck.clear()
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, beginning.end):
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def nothing_lost() -> Iterator[None]:
    """A block in which threads and destructors print no traceback of a full disk, for the main thread meets it too, and speaks;
    and in which an interruption that strikes a destructor, where Python drops what is raised, strikes again after it."""
    threads, others = threading.excepthook, sys.unraisablehook

    def unraisable(found: Any) -> None:
        if isinstance(found.exc_value, INTERRUPTIONS):
            number = signal.SIGTERM if isinstance(found.exc_value, Terminated) else signal.SIGINT
            struck[number] = -AGAIN  # it strikes as a first one, and destructors stay silent until then
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # now it would strike this function
        elif no_room(found.exc_value) is None and not struck:  # what an interruption left half made has nothing to say
            others(found)

    threading.excepthook = lambda found: threads(found) if no_room(found.exc_value) is None else None
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = threads, others


def take_over(run: RunFolder, held: ExitStack) -> bool:
    """Hold the lock of the ``run`` until ``held`` is closed, and clear away what a killed process has left there. Returns
    whether the file system has no locks.

    Raises:
        Unfinished: another process holds it.
        UserError: the folder's files cannot be opened.
    """
    try:
        with writing(run.config):
            alone = held.enter_context(locked(run.config, wait=False))
    except UserError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        raise Unfinished(f"another process works in {run.path}: wait for its end") from None
    if alone:
        run.clear()
    return not alone


@contextmanager
def working_in(run: RunFolder, *, new: bool = False, resumes: bool = True) -> Iterator[None]:
    """A block that works in the ``run``, and nobody else meanwhile. Its interruption says how to go on; a new run folder goes
    again where anything is refused before there is something trained, or is interrupted then and cannot be continued.

    Args:
        new: whether this process has made the folder.
        resumes: whether it can be continued.

    Raises:
        Unfinished: another process is at it, or the disk is full.
        UserError: there is too little memory, or the system refuses a path.
    """
    try:
        with ExitStack() as held:
            if agree(lambda: take_over(run, held)):
                print(f"note: {run.path} is on a file system without locks: see that no other process works in it")
            yield
    except INTERRUPTIONS as end:
        if resumes:
            end.args = (f"continue with --resume {run.path}",)
        elif run.has_trained:
            end.args = (f"{run.path} cannot be continued: delete it, and start again",)
        elif new:
            run.discard()
        raise
    except UserError as error:
        if new and not isinstance(error, Unfinished) and not run.has_trained:
            run.discard()
        raise
    except Exception as error:
        if (said := no_room(error)) is None:
            if (plain := plainly(error)) is None:
                raise
            if new and not run.has_trained:
                run.discard()
            raise UserError(plain) from error
        then = f"continue with `resume={run.path}`" if resumes else "start again"
        raise Unfinished(f"{run.path}: {said}: make room, then {then}") from error


def last_words(end: BaseException) -> tuple[str, int]:
    """What a command says of an interruption, and its exit code: 128 and the signal's number."""
    name, number = ("terminated", signal.SIGTERM) if isinstance(end, Terminated) else ("interrupted", signal.SIGINT)
    said = readable(str(end.args[0])) if end.args else "nothing is left behind, start again"  # it may hold a path
    return f"{name}: {said}", 128 + number


@contextmanager
def interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """A block in which the ``trainer`` trains and an interruption stays one; Lightning ends the process with exit code 1 after
    SIGINT, and with 0 after SIGTERM. Processes that it started end with the block.

    Raises:
        KeyboardInterrupt: in place of Lightning's ``SystemExit``.
    """
    try:
        yield
    except BaseException as end:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # their files are whole or absent
        if isinstance(end, SIGTERMException) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)  # what would have happened without Lightning
        if isinstance(end, SystemExit) and isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
