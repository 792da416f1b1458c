"""Commands in a copy of this process, which has everything imported: a hundred take the time of imports once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from inference.runs.commands import run_process


def in_a_copy(work: Callable[[], object]) -> int:
    """Do ``work`` in a copy of this process and end it, as a process of its own would end that raises what it raises, or exits;
    the copy's number."""
    sys.stdout.flush()
    if number := os.fork():
        return number
    try:
        work()
    except BaseException:  # what a process of its own would print
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stderr.flush()
    finally:
        os._exit(1)


def run_main(command: str, words: list[str]) -> None:
    """Run a ``command``, a module below ``inference``, with the ``words`` of its command line; the process ends with it."""
    sys.argv = [f"inference/{command}.py", *words]
    run_process(import_module(f"inference.{command}").main)
