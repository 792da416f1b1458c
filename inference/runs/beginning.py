"""The first moments of a command, while its modules are imported: this one comes before them, and imports next to nothing."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

ENDS = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}


def end(number: int, frame: Any) -> NoReturn:
    """The handler of SIGINT and SIGTERM for so long: one line, and 130 or 143. Python calls it with the signal's ``number`` and
    the ``frame`` that it broke into."""
    if os.environ.get("RANK", "0") == "0":  # of several processes of a run one speaks
        os.write(2, ENDS[signal.Signals(number)] + b": nothing is left behind, start again\n")
    os._exit(128 + number)


def begin() -> None:
    """Let SIGINT and SIGTERM end the process at once, without a traceback; where a shell has them ignored they still are.
    :func:`~inference.runs.commands.run_command` has handlers of its own for what follows."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
