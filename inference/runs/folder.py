"""Run folders and the files in them: every file is written under a temporary name and renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from data.arguments import shown
from data.errors import UserError
from data.files import check_plain
from data.locks import locked
from inference.runs.processes import agree, is_main, rank
from sibyl._version import __version__

TEMPORARY = re.compile(r"\..+\.\d+\.\d+(\.\w+)?")
"""Names that :func:`write_atomically` writes under."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a disk, a quota or a file that takes no more."""

REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO),
    *(errno.EIO, errno.ESTALE, errno.ENOTEMPTY, errno.EBUSY, errno.EMFILE, errno.ENFILE),
)
"""What the system says of paths that it does not let us use."""
MEMORY = "there is not enough memory for this: lower `batch`, or what else says how large arrays are"
TOO_LARGE = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "array is too big")
"""What torch and NumPy call an array that there is no memory for; numbers that stand for its size may overflow before."""


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None, new: bool = False) -> Path:
    """Call ``write(temporary path)`` and rename: a kill leaves the old file or the new one, never half of one, and so does the
    machine's own end, for the new one is on the disk by then.

    Args:
        keep: where the old file goes, in the same folder; it is deleted otherwise.
        new: whether there must be no old file.

    Raises:
        FileExistsError: there is one.
        IsADirectoryError: the path is the root of a file system.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.stem}.{rank()}.{os.getpid()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # some file systems tell here alone that there is no room
        if keep is not None and path.exists():
            os.replace(path, keep)
        if new and can_link(temporary, path):
            return path
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def can_link(file: Path, path: Path) -> bool:
    """Give a ``file`` the name ``path`` too, of two processes to one alone; false where the file system knows no second names.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


class Unfinished(UserError):
    """What stopped a run is not of its making, so that it can be continued, which the message says how to do."""


def no_room(error: BaseException | None) -> str | None:
    """What the system says where an ``error``, or one that led to it, is of a disk without room; ``None`` where it is another.

    Libraries in other languages, and other processes, pass on the system's words alone.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        for full in FULL:
            if number == full or os.strerror(full) in str(error):
                return os.strerror(full)
        error = error.__cause__ or error.__context__
    return None


def no_memory(error: BaseException | None) -> bool:
    """Whether an ``error``, or one that led to it, is of memory that is too small, or of an array beyond any memory."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in TOO_LARGE):
            return True
        error = error.__cause__ or error.__context__
    return False


def plainly(error: Exception) -> str | None:
    """What to tell the user of an ``error`` that is of the machine: too little memory, or a path that the system refuses;
    ``None`` where it is another."""
    if no_memory(error):
        return MEMORY
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return None


def reserve(path: Path, size: int) -> None:
    """Make an empty file at ``path`` once it is sure that ``size`` bytes can be written there, for libraries that do not
    survive a disk without room.

    Raises:
        OSError: there is none.
    """
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(0)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A block that writes what a user asked for at ``path``.

    Raises:
        UserError: the system does not let it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error


@contextmanager
def sole_writer(folder: Path, file: str | None = None) -> Iterator[None]:
    """A block that writes into a ``folder`` where no run's lock is held, while no other such block does. What killed processes
    have left half-written goes first, where the file system has locks; the folder is made where it is missing.

    Args:
        file: the name of what is written; anything when not given, for folders that hold nothing of others.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as alone:
        clear(folder.glob(f".{glob.escape(Path(file).stem)}.*" if file else ".*") if alone else ())
        yield


def clear(files: Iterable[Path]) -> None:
    """Delete those ``files`` that :func:`write_atomically` left half-written; it must be known that nobody writes them."""
    for file in files:
        if TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


def check_out(path: Path, option: str = "out") -> None:
    """Refuse, before any work, a folder that can neither be made nor written to; ``option`` is who names it.

    Raises:
        UserError: it is one.
    """
    try:
        os.fspath(path).encode()  # a name of other bytes is none to the libraries that write there
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        reason = "its name is no text in UTF-8" if isinstance(error, UnicodeEncodeError) else reason
        raise UserError(f"`{option}={shown(path)}` cannot be made: {reason}") from error
    place = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UserError(f"`{option}={shown(path)}` cannot be made: {place} is no folder that can be written to")


class RunFolder:
    """``config.yaml``, ``manifest.json``, ``metrics.json``, ``checkpoints/``, ``features.safetensors``, ``posterior.nc``,
    ``posteriors/``, ``plots/``, logs.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.json"
        self.checkpoints = self.path / "checkpoints"
        self.features = self.path / "features.safetensors"
        self.network = self.checkpoints / "network.safetensors"
        self.posterior = self.path / "posterior.nc"
        self.posteriors = self.path / "posteriors"
        self.plots = self.path / "plots"
        self.logs = self.path / "logs"
        self.seconds_file = self.checkpoints / "seconds.json"
        self.made: tuple[Path, ...] = ()
        """Folders that were made for it: its own, and those above."""

    @property
    def own(self) -> tuple[Path, ...]:
        """Everything that a run writes."""
        files = (self.config, self.manifest, self.metrics, self.features, self.posterior)
        return (*files, self.checkpoints, self.posteriors, self.plots, self.logs)

    @classmethod
    def create(cls, out: str | Path | None, command: str, config: str) -> RunFolder:
        """Make a new run folder and write its configuration; where several processes run, the main one makes it for all.

        Raises:
            UserError: the folder already holds a run, or cannot be made.
        """
        return agree(lambda: cls.make(out, command, config))

    @classmethod
    def make(cls, out: str | Path | None, command: str, config: str) -> RunFolder:
        """Make a run folder that holds ``config``, its options as YAML.

        Raises:
            UserError: there is a run already, or nothing can be written there.
        """
        path = Path(out) if out else Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(path)
        run.check_new()
        run.made = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        try:
            with writing(path), suppress(FileExistsError):
                write_atomically(run.config, lambda file: file.write_text(config, encoding="utf-8"), new=True)
                write_json(run.manifest, {"sibyl": __version__, "command": command, "config": checksum(config), "files": {}})
                return run
        except UserError:
            run.discard()
            raise
        raise run.taken  # by another process, since we looked

    @property
    def taken(self) -> UserError:
        """That there is a run already."""
        return UserError(f"{self.path} already holds a run: continue it with --resume {self.path}, or choose another --out")

    def check_new(self) -> None:
        """Refuse, before any work, a folder that cannot be made, or that a run would write over something in.

        Raises:
            UserError: it is one.
        """
        check_out(self.path)
        if os.path.lexists(self.config):
            raise self.taken
        if found := [file.name for file in self.own if os.path.lexists(file)]:
            raise UserError(f"{self.path} holds {found[0]}, which is of no run: choose another `out`, or take it away")

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """Open a run folder.

        Raises:
            UserError: it is missing, or has no configuration that is text, or another one than it began with.
        """
        run = cls(path)
        if not os.path.isfile(run.config):
            raise UserError(f"{path} is not a run folder: it has no config.yaml")
        config = run.read_config()
        if run.manifest.exists() and run.read_manifest().get("config") != checksum(config):
            raise UserError(f"{run.config} is not what the run began with: put that back, or delete {run.manifest}")
        return run

    def read_config(self) -> str:
        """What ``config.yaml`` holds.

        Raises:
            UserError: it cannot be read, or is no text.
        """
        try:
            return read_text(self.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} is damaged: {error}") from error

    def read_manifest(self) -> dict[str, Any]:
        """What :mod:`inference.runs.manifest` knows of the run.

        Raises:
            UserError: it is missing or damaged.
        """
        content = read_json(self.manifest)
        if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
            raise UserError(f"{self.manifest} is damaged: put it back, or delete it to go on without its checks")
        return content

    def clear(self) -> None:
        """Delete temporary files of processes that were killed; only who holds the run's lock may."""
        clear(self.path.rglob(".*"))

    @property
    def has_trained(self) -> bool:
        """Whether there is anything that took time to train."""
        return any(self.checkpoints.glob("*.safetensors")) or any(self.checkpoints.glob("*/*.ckpt"))

    def discard(self) -> None:
        """Take away what a run writes, and folders that were made for it; files of others stay. The main process does it."""
        if not is_main():
            return
        for file in self.own:
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds files of others
            for folder in self.made:
                folder.rmdir()

    def results(self) -> dict[str, Any]:
        """What ``metrics.json`` holds.

        Raises:
            UserError: it is missing, damaged, or of no run.
        """
        content = read_json(self.metrics)
        if not isinstance(content, dict):
            raise UserError(f"{self.metrics} is of no run: it holds no names and values")
        return content

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall-clock seconds to the stage's total, which survives a resume; the main process keeps time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if is_main():
                totals = self.seconds()
                totals[stage] = round(totals.get(stage, 0.0) + time.perf_counter() - start, 2)
                write_json(self.seconds_file, totals)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far.

        Raises:
            UserError: the file is damaged.
        """
        found = read_json(self.seconds_file) if self.seconds_file.exists() else {}
        if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
            raise UserError(f"{self.seconds_file} is damaged: delete it, and what it counts begins at 0")
        return found


def checksum(text: str) -> str:
    """Of a short ``text``, for ``manifest.json``."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_json(path: Path, content: Any) -> Path:
    """``content`` as one JSON document, atomically; NaN is refused, ``null`` is the way to say "none"."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """The value, or what it holds by name, with ``None`` for a number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 whatever the system's own encoding is.

    Raises:
        OSError: it is missing.
        UserError: it is no file.
        ValueError: it is no text.
    """
    check_plain(path)
    return path.read_text(encoding="utf-8")
