"""Tensors on disk: safetensors files with JSON metadata, states of modules, feature files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.arguments import as_path
from data.errors import UserError, readable
from data.files import check_plain
from data.gather import IN_MEMORY, gather, mapped
from data.items import SPLITS, LabelledItems
from inference.runs.manifest import verify, write_recorded

AT_ONCE = 4096
"""Items that are copied together."""
SHARE = 0.25
"""Of a GPU's free memory, for items that are kept there."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
"""Types of a feature file by their names in safetensors."""
Features = dict[str, LabelledItems]
"""split -> features ``[n, D]`` with labels."""


def near(part: LabelledItems, device: torch.device) -> LabelledItems:
    """The same with its items on a GPU ``device``, so that steps send indices alone; as it is where they are not in memory or
    would take more than :data:`SHARE` of what is free there, and on a CPU."""
    if device.type != "cuda" or part.items.nbytes > min(IN_MEMORY, SHARE * torch.cuda.mem_get_info(device)[0]):
        return part
    return replace(part, items=part.items.to(device))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write named ``tensors`` as a safetensors file with JSON metadata, atomically."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        whole = own.untyped_storage().nbytes() == own.nbytes and own.untyped_storage().data_ptr() not in seen
        separate[name] = own if whole else own.clone()  # the format takes no tensors that share their numbers
        seen.add(own.untyped_storage().data_ptr())
    text = {key: json.dumps(value) for key, value in metadata.items()}
    return write_recorded(path, lambda file: save_file(separate, str(file), metadata=text))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: it is missing or damaged, or not the file that its run wrote.
    """
    verify(Path(path))
    check_plain(Path(path))
    try:
        large = os.path.getsize(path) > IN_MEMORY
        with safe_open(str(path), framework="np" if large else "pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            if large and all(file.get_slice(name).get_dtype() in DTYPES for name in file.keys()):  # noqa: SIM118
                return mapped_tensors(Path(path), file), metadata
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except Exception as error:  # a broken file raises whatever its bytes lead to
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} is missing, damaged or no safetensors file: {reason[:160]}") from error


def mapped_tensors(path: Path, file: Any) -> dict[str, Tensor]:
    """The tensors of a file that may be larger than memory, which safetensors itself would set aside for it.

    Args:
        file: the same, opened by ``safe_open``, which has checked that its tensors follow one another to its end.
    """
    tensors = {}
    with path.open("rb") as content:
        start = 8 + int.from_bytes(content.read(8), "little")  # of the first tensor, behind the header and its length
        for name in file.offset_keys():
            part = file.get_slice(name)
            tensors[name] = mapped(content, DTYPES[part.get_dtype()], part.get_shape(), start)
            start += tensors[name].nbytes
    return tensors


def load_state(module: nn.Module, path: str | Path, *, renamed: Mapping[str, str] | None = None) -> None:
    """Load a safetensors state dict into ``module``.

    Args:
        renamed: what names started with when older files were written -> what they start with now.

    Raises:
        UserError: it is damaged or belongs to another configuration.
    """
    tensors, _ = load_tensors(path)
    for old, new in (renamed or {}).items():
        tensors = {new + name[len(old) :] if name.startswith(old) else name: value for name, value in tensors.items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} belongs to another configuration: {detail}") from None


def save_features(path: str | Path, features: Features, metadata: dict[str, Any] | None = None) -> Path:
    """Write ``features`` ``[classes, images, D]`` float32 and ``counts`` ``[classes]``, with ``classes`` (names) and
    ``splits`` (one per class) in the metadata; returns where.

    Classes with fewer images than the largest are padded with NaN behind their own ``counts`` images.

    Raises:
        UserError: what is no path.
    """
    path = as_path(path)
    counts = torch.cat([part.counts for part in features.values()])
    names = [name for part in features.values() for name in part.class_names]
    splits = [split for split, part in features.items() for _ in range(part.num_classes)]
    block = gather(padded(part, c, int(counts.max())) for part in features.values() for c in range(part.num_classes))
    content = {"classes": names, "splits": splits, **(metadata or {})}
    return save_tensors(path, {"features": block, "counts": counts}, content)


def padded(part: LabelledItems, number: int, images: int) -> Tensor:
    """``[1, images, D]`` float32: the features of one class, then NaN.

    Args:
        number: of the class in ``part``.
        images: as many rows.
    """
    rows = (part.labels == number).nonzero()[:, 0]
    block = torch.full((1, images, part.items.shape[-1]), torch.nan, dtype=torch.float32)
    block[0, : len(rows)] = part.items[rows].float()
    return block


def dataset_name(path: str | Path) -> str:
    """The data set that a feature file is of: as its metadata say, or else the file's own name.

    Raises:
        UserError: the file is missing or damaged.
    """
    return readable(str(load_tensors(path)[1].get("dataset") or Path(path).stem))


def load_features(path: str | Path) -> Features:
    """Read a feature file: ours, or any with ``features`` ``[classes, images, D]``, ``classes`` and ``splits``.

    Raises:
        UserError: damaged, or of another layout.
    """
    tensors, metadata = load_tensors(path)
    features, counts, names, splits = check_layout(path, tensors, metadata)
    present = torch.arange(features.shape[1]) < counts[:, None]
    for some, there in zip(features, present, strict=True):
        if not bool(some[there].float().isfinite().all()):
            raise UserError(f"{path} holds features that are not finite, or too large for single precision")
    loaded = {}
    for split in dict.fromkeys([*SPLITS, *splits]):
        chosen = torch.tensor([s == split for s in splits])
        if chosen.any():
            labels = torch.repeat_interleave(torch.arange(int(chosen.sum())), counts[chosen])
            class_names = tuple(name for name, s in zip(names, splits, strict=True) if s == split)
            loaded[split] = LabelledItems(rows_of(features, present, chosen), labels, class_names)
    if missing := [split for split in SPLITS if split not in loaded]:
        raise UserError(f"{path} has no classes for {', '.join(missing)}")
    return loaded


def check_layout(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Features, counts ``[classes]`` and each class's name and split, of what a feature file at ``path`` holds.

    Args:
        tensors, metadata: as :func:`load_tensors` gives them.

    Raises:
        UserError: another layout.
    """
    features, names, splits = tensors.get("features"), metadata.get("classes"), metadata.get("splits")
    if features is None or features.dim() != 3 or names is None or splits is None:
        raise UserError(f"{path} lacks a tensor 'features' [classes, images, D] or metadata 'classes' and 'splits'")
    if not (features.is_floating_point() and features.element_size() > 1 and features.numel()):
        shape = "×".join(map(str, features.shape))
        raise UserError(f"{path}: the features are {features.dtype} {shape}, and floats, one at least, are wanted")
    for what, known in (("classes", names), ("splits", splits)):
        if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
            raise UserError(f"{path}: metadata '{what}' must be a list of names, one per class")
    if not len(features) == len(names) == len(splits):
        raise UserError(f"{path}: {len(features)} classes of features, {len(names)} names, {len(splits)} splits")
    counts = tensors.get("counts", torch.full((len(features),), features.shape[1]))
    if counts.shape != (len(features),) or counts.dtype != torch.int64:
        raise UserError(f"{path}: 'counts' must be int64, one per class, not {counts.dtype} {tuple(counts.shape)}")
    if int(counts.min()) < 0 or int(counts.max()) > features.shape[1]:
        lowest, highest = int(counts.min()), int(counts.max())
        raise UserError(f"{path}: 'counts' go from {lowest} to {highest}, and classes have 0 to {features.shape[1]} images")
    return features, counts, [readable(name) for name in names], splits


def rows_of(features: Tensor, present: Tensor, chosen: Tensor) -> Tensor:
    """The rows that are there of some classes, float32; without a copy where they stand beside one another in this type.

    Args:
        features: ``[classes, images, D]``.
        present: ``[classes, images]``, which of them are images.
        chosen: ``[classes]``, which classes.
    """
    first, last = (int(i) for i in chosen.nonzero()[[0, -1], 0])
    whole = bool(chosen[first : last + 1].all()) and bool(present[first : last + 1].all())
    if whole and features.dtype == torch.float32:
        return features[first : last + 1].flatten(0, 1)
    return gather(features[c][present[c]].float() for c in chosen.nonzero()[:, 0].tolist())
