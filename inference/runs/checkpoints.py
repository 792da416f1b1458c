"""Checkpoints of training: each whole or absent, its predecessor kept until it is known to be whole."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from data.errors import UserError
from data.files import check_plain
from inference.runs.manifest import is_own, write_recorded
from inference.runs.processes import is_main

BEST, LAST, BEFORE = "best.ckpt", "last.ckpt", "previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints as it writes them, but under a temporary name in their own folder, where Lightning writes to the
    system's temporary folder and copies: whatever file systems there are, a kill or a full disk leaves the old one or the new.

    The checkpoint that ``last.ckpt`` replaces stays as ``previous.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the ``checkpoint`` to ``path``; ``storage_options`` are for other places than disks, and not looked at."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_recorded(Path(path), lambda file: write_and_compare(file, buffer.getbuffer()), keep=kept_beside(Path(path)))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = lambda storage, place: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The checkpoint at ``path``, with ``map_location`` as in ``torch.load``; nothing but tensors and plain values is read,
        whatever ``weights_only`` says."""
        return super().load_checkpoint(path, map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file ``path``, and a folder that Lightning made for it alone."""
        super().remove_checkpoint(path)
        if Path(path).name == ".temp.ckpt":  # how processes that we started hand over weights
            with suppress(OSError):
                Path(path).parent.rmdir()


def write_and_compare(file: Path, content: memoryview) -> None:
    """Write ``content`` to the ``file`` and read it back.

    Raises:
        OSError: it has come back changed.
    """
    file.write_bytes(content)
    if file.read_bytes() != content:
        raise OSError(f"{file} does not hold what was written to it")


def kept_beside(path: Path) -> Path | None:
    """Where the file that ``path`` replaces stays; ``None`` where it goes."""
    return path.with_name(BEFORE) if path.name == LAST else None


class KeptCheckpoint(ModelCheckpoint):
    """Lightning's, of one file in a folder that may have moved since; Lightning's own then forgets how good the best was.

    Args:
        file: its path.
        monitor, mode: what is best; without it the latest is kept.
        every: epochs between two.
    """

    def __init__(self, file: Path, *, monitor: str | None = None, mode: str = "min", every: int = 1) -> None:
        super().__init__(
            file.parent,
            file.stem,
            monitor=monitor,
            mode=mode,
            every_n_epochs=every,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    @property
    def state_key(self) -> str:
        """As Lightning's own, so that what it knows is found in checkpoints of earlier versions."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint knows of the others, by their names in this folder; ``state_dict`` is Lightning's."""
        here = {name: self.moved(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {self.moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **here, "best_k_models": best, "dirpath": self.dirpath})

    def moved(self, path: str) -> str:
        """The file of the same name in this folder."""
        return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path


class Begun(Callback):
    """Knows whether training has begun, for what fails before is the resuming; and lets training that had lost its patience
    when it was interrupted stop there.

    Attributes:
        yes: it has begun.
    """

    yes = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.yes = True
        patient = (callback.wait_count < callback.patience for callback in trainer.early_stopping_callbacks)
        trainer.should_stop = not all(patient)


def start_of(folder: Path, module: lightning.LightningModule) -> Path | None:
    """The checkpoint that a stage goes on from: its last one, or the one before where that is damaged; ``None`` at its
    beginning.

    Args:
        folder: of the stage.
        module: what is trained; its weights are those of the checkpoint afterwards.

    Raises:
        UserError: the checkpoints there are cannot be read, or are of another configuration.
    """
    damaged = None
    for file in (folder / LAST, folder / BEFORE):
        if not file.exists():
            continue
        try:
            weights = read_weights(file)
        except UserError as error:
            damaged = damaged or error
            continue
        if damaged is not None:
            print(f"note: {folder / LAST} is damaged: training goes on from the checkpoint before it")
            if is_main():
                (folder / LAST).unlink(missing_ok=True)  # it would take the place of the good one
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(unusable(file, error)) from error
        return file
    if damaged is not None:
        raise damaged
    return None


def read_weights(file: Path) -> dict[str, Any]:
    """The module's state in a checkpoint ``file``.

    Raises:
        UserError: it is no plain file, cannot be read, or is not what the run wrote.
    """
    check_plain(file)
    if not is_own(file):
        raise UserError(unusable(file, ValueError("it is damaged, or another run's")))
    try:
        return torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(unusable(file, error)) from error


def unusable(file: Path, error: Exception) -> str:
    """One line about a checkpoint ``file``, with what the ``error`` says in short, and what to do."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{file} cannot be resumed from ({reason}): delete {file.parent} to train this stage anew"
