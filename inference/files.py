"""Run folders and the files in them: every file is written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import UserError
from data.images import SPLITS, LabelledItems

Features = dict[str, LabelledItems]
"""split -> features ``[n, D]`` with labels."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call ``write(temporary path)`` and rename: a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class RunFolder:
    """``config.yaml``, ``metrics.json``, ``checkpoints/``, ``features.safetensors``, ``posterior.nc``, ``plots/``, logs.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.checkpoints = self.path / "checkpoints"
        self.features = self.path / "features.safetensors"
        self.network = self.checkpoints / "network.safetensors"
        self.posterior = self.path / "posterior.nc"
        self.plots = self.path / "plots"
        self.seconds_file = self.checkpoints / "seconds.json"

    @classmethod
    def create(cls, out: str | Path | None, command: str, config: str) -> RunFolder:
        """Make a new run folder and write its configuration.

        Raises:
            UserError: the folder already holds a run, or cannot be made.
        """
        path = Path(out) if out else Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(path)
        if run.config.exists():
            raise UserError(f"{path} already holds a run: continue it with --resume {path}, or choose another --out")
        try:
            write_atomically(run.config, lambda file: file.write_text(config))
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}") from error
        return run

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """Open a run folder.

        Raises:
            UserError: it is missing or has no configuration.
        """
        run = cls(path)
        if not run.config.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml")
        return run

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall-clock seconds to the stage's total, which survives a resume."""
        start = time.perf_counter()
        try:
            yield
        finally:
            totals = self.seconds()
            totals[stage] = round(totals.get(stage, 0.0) + time.perf_counter() - start, 2)
            write_json(self.seconds_file, totals)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far."""
        return read_json(self.seconds_file) if self.seconds_file.exists() else {}


def write_json(path: Path, content: Any) -> Path:
    """One JSON document, atomically; NaN is refused, ``null`` is the way to say "none"."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda file: file.write_text(text))


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """A safetensors file with JSON metadata."""
    separate = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}  # shared ones too
    text = {key: json.dumps(value) for key, value in metadata.items()}
    return write_atomically(path, lambda file: save_file(separate, str(file), metadata=text))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is missing, damaged or no safetensors file: {error}") from error


def load_state(module: nn.Module, path: str | Path) -> None:
    """Load a safetensors state dict into ``module``.

    Raises:
        UserError: it is damaged or belongs to another configuration.
    """
    tensors, _ = load_tensors(path)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} belongs to another configuration: {detail}") from None


def save_features(path: Path, features: Features, metadata: dict[str, Any] | None = None) -> Path:
    """Write ``features`` ``[classes, images, D]`` float32 and ``counts`` ``[classes]``, with ``classes`` (names) and
    ``splits`` (one a class) in the metadata.

    Classes with fewer images than the largest are padded with NaN behind their own ``counts`` images.
    """
    counts = torch.cat([part.counts for part in features.values()])
    blocks: list[Tensor] = []
    names: list[str] = []
    splits: list[str] = []
    for split, part in features.items():
        block = torch.full((part.num_classes, int(counts.max()), part.items.shape[-1]), torch.nan)
        order = part.labels.argsort(stable=True)
        rank = torch.arange(len(part)) - (part.counts.cumsum(0) - part.counts)[part.labels[order]]
        block[part.labels[order], rank] = part.items[order].float()
        blocks.append(block)
        names += part.class_names
        splits += [split] * part.num_classes
    content = {"classes": names, "splits": splits, **(metadata or {})}
    return save_tensors(path, {"features": torch.cat(blocks), "counts": counts}, content)


def load_features(path: str | Path) -> Features:
    """Read a feature file: ours, or any with ``features`` ``[classes, images, D]``, ``classes`` and ``splits``.

    Raises:
        UserError: damaged, or of another layout.
    """
    tensors, metadata = load_tensors(path)
    features, names, splits = tensors.get("features"), metadata.get("classes"), metadata.get("splits")
    if features is None or features.dim() != 3 or names is None or splits is None:
        raise UserError(f"{path} lacks a tensor 'features' [classes, images, D] or metadata 'classes' and 'splits'")
    if not len(features) == len(names) == len(splits):
        raise UserError(f"{path}: {len(features)} classes of features, {len(names)} names, {len(splits)} splits")
    counts = tensors.get("counts", torch.full((len(features),), features.shape[1]))
    present = torch.arange(features.shape[1]) < counts[:, None]
    if not bool(features[present].isfinite().all()):
        raise UserError(f"{path} holds features that are not finite")
    loaded = {}
    for split in dict.fromkeys([*SPLITS, *splits]):
        chosen = torch.tensor([s == split for s in splits])
        if chosen.any():
            labels = torch.repeat_interleave(torch.arange(int(chosen.sum())), counts[chosen])
            class_names = tuple(name for name, s in zip(names, splits, strict=True) if s == split)
            loaded[split] = LabelledItems(features[chosen][present[chosen]].float(), labels, class_names)
    if missing := [split for split in SPLITS if split not in loaded]:
        raise UserError(f"{path} has no classes for {', '.join(missing)}")
    return loaded
