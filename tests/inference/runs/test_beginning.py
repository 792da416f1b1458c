"""What a signal does to a command that is still importing its modules."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference.runs.beginning import ENDS

COMMANDS = [["-m", f"inference.{name}"] for name in ("svi_sib", "svi_bnn", "svi_vid", "predict", "diagnose")]
SCRIPT = ["-c", "from sibyl.commands import bnn; bnn()"]


def start(words, ignored=False):
    """The process of a command, once it has its handlers and nothing more."""

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)

    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, preexec_fn=prepare)
    status = Path(f"/proc/{process.pid}/status")
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None
        time.sleep(0.002)
    return process


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells by Linux's /proc when a process has its handlers")
@pytest.mark.parametrize("words", [*COMMANDS, SCRIPT], ids=lambda words: words[-1])
def test_a_signal_ends_a_command_that_has_not_begun_with_a_line(words):
    for number, name in ENDS.items():
        process = start(words)
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
        assert (process.returncode, said) == (128 + number, f"{name.decode()}: nothing is left behind, start again\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells by Linux's /proc when a process has its handlers")
def test_what_a_shell_has_ignored_stays_so():
    process = start(SCRIPT, ignored=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
