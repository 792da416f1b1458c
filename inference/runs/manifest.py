"""The manifest of a run: what its configuration, data and files were when they were written, so that nothing is mixed up.

``manifest.json`` in a run folder has the version that began it, a checksum of ``config.yaml``, a fingerprint of the data, and
checksums of features, weights and checkpoints. Each is compared when it is read. Runs of versions before 0.5 have no manifest
and are read as they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from inference.runs.files import write_atomically, write_json
from inference.runs.folder import RunFolder
from inference.runs.processes import TIMEOUT, is_main
from sibyl._version import __version__

READ = 2**28
"""Bytes of a tensor that its fingerprint reads at most."""


def write_recorded(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None) -> Path:
    """:func:`~inference.runs.files.write_atomically`, with the file's checksum in the manifest of the run that it is of, if it
    is of any.

    The manifest has it before the file has its name, beside that of the file before: whichever of the two a kill leaves is
    known. Of the processes of a run the main one writes; the others wait for the file to be there.
    """
    if not is_main():
        wait_for(path)
        return path

    def both(file: Path) -> None:
        write(file)
        record(path, file, keep)

    return write_atomically(path, both, keep=keep)


def wait_for(path: Path) -> None:
    """Wait for the main process to have written ``path``.

    Raises:
        UserError: it has not, after :data:`~inference.runs.processes.TIMEOUT`.
    """
    end = time.monotonic() + TIMEOUT.total_seconds()
    while not (path.is_file() and is_own(path)):
        if time.monotonic() > end:
            raise UserError(f"the main process has not written {path}: continue the run with `resume`")
        time.sleep(0.02)


def record(path: Path, file: Path, keep: Path | None = None) -> None:
    """Note that ``path`` will have the content of ``file``.

    Args:
        keep: where the content that it has so far goes.
    """
    if (found := find(path)) is None:
        return
    run, content = found
    names = content["files"]
    before = names.get(name_in(run, path), [])[:1]
    names[name_in(run, path)] = [digest(file), *before]
    if keep is not None:
        names[name_in(run, keep)] = [*before, *names.get(name_in(run, keep), [])[:1]]
    write_json(run.manifest, content)


def verify(path: Path) -> None:
    """Fail where a file of a run is not the one that the run wrote; files elsewhere, and of runs without a manifest, pass.

    Raises:
        UserError: it is another run's, or has changed, or the manifest is damaged.
    """
    if not is_own(path):
        raise UserError(f"{path} is damaged, or another run's: put back what this run wrote, or delete it")


def is_own(path: Path) -> bool:
    """Whether a file is the one that its run wrote, or of none with a manifest.

    Raises:
        UserError: the manifest is damaged.
    """
    if not path.is_file() or (found := find(path)) is None:
        return True
    run, content = found
    known = content["files"].get(name_in(run, path))
    if known is None:
        return path != run.features and run.checkpoints not in path.parents
    stat = path.stat()
    return remembered(path, stat.st_size, stat.st_mtime_ns) in known


def find(path: Path) -> tuple[RunFolder, dict[str, Any]] | None:
    """The run that a file is of, and its manifest; ``None`` where there is none.

    Raises:
        UserError: the manifest is damaged.
    """
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        run = RunFolder(folder)
        if run.manifest.is_file() and run.config.is_file():
            return run, run.read_manifest()
    return None


def name_in(run: RunFolder, path: Path) -> str:
    """How the manifest calls a file at ``path``."""
    return path.relative_to(run.path).as_posix()


@functools.lru_cache(maxsize=1024)
def remembered(file: Path, size: int, changed: int) -> str:
    """:func:`digest`, read once for a ``file`` of a ``size`` in bytes and a time that it was ``changed``."""
    return digest(file)


def digest(file: Path) -> str:
    """The checksum of a file's content."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()[:32]


def check_data(run: RunFolder, data: Any) -> None:
    """Fail where the ``data`` are not those that the run began with; note them where it has none yet.

    Raises:
        UserError: they are others, or the manifest is damaged.
    """
    if not run.manifest.is_file():
        return
    content, now = run.read_manifest(), fingerprint(data)
    if (version := content.get("sibyl")) != __version__:
        print(f"note: {run.path} was begun by version {version} of Sibyl, and this is {__version__}")
    if content.setdefault("data", now) != now:
        raise UserError(f"the data are not those that {run.path} began with: give the same, or start a new run")
    write_json(run.manifest, content)


def fingerprint(data: Any) -> str:
    """A checksum of data: tensors by type, shape and numbers (of those beyond 256 MiB by rows spread over all of it), names,
    and whatever dataclass, tuple or mapping they stand in."""
    total = hashlib.blake2b(digest_size=16)
    add(total, data)
    return total.hexdigest()


def add(total: Any, part: Any) -> None:
    """Add a ``part`` of data to the ``total``, a hash."""
    if isinstance(part, Tensor):
        total.update(f"{part.dtype}{tuple(part.shape)}".encode())
        rows = part[:: math.ceil(part.nbytes / READ)] if part.dim() and part.nbytes else part
        total.update(rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif is_dataclass(part) and not isinstance(part, type):
        add(total, [getattr(part, field.name) for field in fields(part)])
    elif isinstance(part, Mapping):
        add(total, list(part.items()))
    elif isinstance(part, list | tuple):
        total.update(f"{len(part)} of ".encode())
        for each in part:
            add(total, each)
    else:
        total.update(json.dumps(part, default=lambda other: type(other).__qualname__).encode())
