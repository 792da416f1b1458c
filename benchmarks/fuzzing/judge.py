"""A case in a process of its own, and what became of it."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.copies import in_a_copy, run_main
from benchmarks.fuzzing.calls import PRELUDE
from benchmarks.fuzzing.cases import Case
from benchmarks.fuzzing.damage import damage, overwrite
from inference.runs.commands import run_process
from inference.runs.files import TEMPORARY
from inference.runs.folder import RunFolder

LIMIT = 20.0
"""Seconds that a case may compute; a run that works is then interrupted, which it must heed within as many."""
IDLE = 30.0
"""Seconds that it may wait without computing."""
MEMORY = 6 * 2**30
"""Bytes that a case may take beyond what its process starts with."""
GOOD = ("refused", "accepted", "interrupted")
BAD = ("traceback", "crash", "hang", "untidy", "left behind")


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        name: one of :data:`GOOD` or :data:`BAD`.
        detail: what was said, or left.
        seconds: it took.
    """

    name: str
    detail: str
    seconds: float


def prepare(case: Case, ground: Path, place: Path) -> None:
    """Copy the files that a case names, and damage them."""
    asked = " ".join((*case.words, *(file for file, *_ in case.damages)))
    place.mkdir()
    for entry in ground.iterdir():
        if entry.name == "runs":
            for run in entry.iterdir():
                if f"runs/{run.name}" in asked or "runs " in f"{asked} " or "'runs'" in asked:
                    shutil.copytree(run, place / "runs" / run.name)
        elif entry.name in asked:
            (shutil.copytree if entry.is_dir() else shutil.copy)(entry, place / entry.name)
    for file, way, number in case.damages:
        if way.startswith("="):
            overwrite(place / file, way[1:].encode("utf-8", "surrogatepass"))
        elif way == "unreadable_folder":
            (place / file).mkdir(mode=0)
        else:
            damage(place / file, way, number)


def snapshot(place: Path) -> dict[str, tuple[int, int, int]]:
    """Name -> mode, size and time of change of everything below ``place``."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            stat = os.lstat(os.path.join(folder, name))
            size = (0, 0) if name in folders else (stat.st_size, stat.st_mtime_ns)
            found[os.path.relpath(os.path.join(folder, name), place)] = (stat.st_mode, *size)
    return found


def enter(case: Case, place: Path, scratch: Path) -> None:
    """What a process of a case does first: its folder, output, limits and surroundings."""
    os.setpgid(0, 0)
    os.chdir(place)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ |= {
        "TMPDIR": str(scratch / "tmp"),
        "SIBYL_CACHE": str(scratch / "cache"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
    }
    tempfile.tempdir = None
    if "no temporary folder" in case.surroundings:
        os.environ["TMPDIR"] = "/nowhere"
    if "no home" in case.surroundings:
        os.environ.pop("HOME", None)
    if "closed input" in case.surroundings:
        os.close(0)
    if "no output" in case.surroundings:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    heed_permissions()


def heed_permissions() -> None:
    """Let files without permissions be without them for root too, who otherwise reads and writes them all (Linux)."""
    with suppress(AttributeError, OSError):
        header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None)
        if libc.capget(header, rights) == 0:
            for i in range(3):  # effective, permitted, inheritable
                rights[i] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
            libc.capset(header, rights)


def forked(case: Case, place: Path, scratch: Path) -> int:
    """Start a case in a copy of this process, which has everything imported; its number."""

    def work() -> None:
        enter(case, place, scratch)
        socket.socket.connect = refuse_connection  # type: ignore[method-assign]
        encoding = "ascii" if {"ascii", "C locale"} & set(case.surroundings) else "utf-8"
        sys.stdout = open(1, "w", encoding=encoding)  # noqa: SIM115 (what was there may be a test's)
        sys.stderr = open(2, "w", buffering=1, encoding=encoding, errors="backslashreplace")  # noqa: SIM115
        if case.command == "python":
            run_process(lambda _: exec(compile(f"{PRELUDE}\n{case.words[0]}", "case", "exec"), {"__name__": "case"}))
        run_main(case.command, list(case.words))

    return in_a_copy(work)


def refuse_connection(*_: Any) -> None:
    """No case needs a network, and none waits for one."""
    raise OSError("no network")


def spawned(case: Case, place: Path, scratch: Path) -> int:
    """Start a case in a process of its own, as a shell does; its number."""
    env = os.environ | {"PYTHONPATH": os.getcwd(), "TMPDIR": str(scratch / "tmp")}
    if "ascii" in case.surroundings:
        env["PYTHONIOENCODING"] = "ascii"
    if "C locale" in case.surroundings:
        env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", f"inference.{case.command}", *case.words]
    return subprocess.Popen([os.fsencode(word) for word in words], env=env, preexec_fn=lambda: enter(case, place, scratch)).pid


def wait(number: int, limit: float) -> tuple[int | None, bool]:
    """The exit status of a process, ``None`` while it works, and whether it has not computed for a while.

    Args:
        limit: of the seconds that it computes from now on; how fast depends on what else the machine does.
    """
    ticks, first = os.sysconf("SC_CLK_TCK"), None
    latest, when = 0.0, time.monotonic()
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), False
        used = sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13])) / ticks
        first = used if first is None else first
        if used > latest:
            latest, when = used, time.monotonic()
        if used - first > limit or time.monotonic() - when > IDLE:
            return None, used - first <= limit
        time.sleep(0.01)


def judge(case: Case, ground: Path, scratch: Path, *, apart: bool = False, limit: float = LIMIT) -> Outcome:
    """Run a case.

    Args:
        ground: the sound files.
        scratch: an empty folder, for the case alone.
        apart: in a process as a shell starts it.
        limit: of the seconds that it computes.
    """
    place = scratch / "place"
    prepare(case, ground, place)
    (scratch / "tmp").mkdir()
    if "read-only place" in case.surroundings:
        place.chmod(0o555)
    before, begun = snapshot(place), time.monotonic()
    number = (spawned if apart and case.command != "python" else forked)(case, place, scratch)
    status, idle = wait(number, limit + 15 * apart)  # which imports everything first
    interrupted = status is None
    if interrupted:
        os.kill(number, signal.SIGINT)
        status, _ = wait(number, limit)
        if status is None:
            os.killpg(number, signal.SIGKILL)
            os.waitpid(number, 0)
    with suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)  # processes that it started
    seconds = time.monotonic() - begun
    said, printed = ((scratch / name).read_text(errors="replace") for name in ("err", "out"))
    name, detail = verdict(case, status, said, printed, interrupted)
    if name == "interrupted" and idle:
        name, detail = "hang", "waits without computing"
    if left := [] if name in BAD else left_behind(case, name, place, scratch, before):
        name, detail = "left behind", f"{left[:3]} {detail}"
    return Outcome(name, detail, seconds)


def verdict(case: Case, status: int | None, said: str, printed: str, interrupted: bool) -> tuple[str, str]:
    """Name and detail of an outcome by exit status and output."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if status is None:
        return "hang", "heeds no SIGINT"
    if "Traceback" in said or status == 1:
        return "traceback", said.strip()[-3000:]
    if status < 0:
        return "crash", f"signal {-status} {said[-300:]}"
    if interrupted:
        begun = "run folder:" in printed or ("no output" in case.surroundings and "--resume" in last)
        working = begun or case.command in ("python", "predict", "diagnose")
        if status == 130 and said.count("\n") == 1:
            return ("interrupted", last) if working else ("hang", f"does not begin: {printed[-200:]}")
        return ("accepted", "") if status == 0 else ("untidy", f"interrupted with {status}: {said[-500:]}")
    if status == 0:
        return "accepted", last
    one = said.count("\n") == 1 and said.startswith("error: ") and len(said) < 1500 and "\x1b" not in said
    return ("refused", last) if status == 2 and one else ("untidy", f"exit code {status}: {said[-1500:]}")


def left_behind(case: Case, name: str, place: Path, scratch: Path, before: dict[str, Any]) -> list[str]:
    """What a case should not have left: temporary files, and, of what was refused, anything new or changed but for what was
    trained."""
    after = snapshot(place)
    left = [file for file in after if TEMPORARY.fullmatch(Path(file).name)]
    if "no output" in case.surroundings:
        return left  # what was to be printed is in the files
    left += [file.name for file in (scratch / "tmp").iterdir() if not file.name.startswith("pymp-")]
    if name == "refused" and "--resume" not in " ".join(case.words):
        changed = [file for file in {*before, *after} if before.get(file) != after.get(file)]
        trained = [file for file in after if file.endswith("config.yaml") and RunFolder(place / file).path.parent.is_dir()]
        kept = [
            os.path.dirname(file) for file in trained if file not in before and RunFolder((place / file).parent).has_trained
        ]
        left += [
            file for file in changed if not any(file == k or file.startswith(f"{k}/") or k.startswith(f"{file}/") for k in kept)
        ]
    return sorted(set(left))
