"""Run folders: what is in one, how it is made, read and cleared."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import UserError
from inference.runs.files import check_out, checksum, clear, read_json, read_text, write_atomically, write_json, writing
from inference.runs.processes import agree, is_main
from sibyl._version import __version__


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
