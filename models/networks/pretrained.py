"""Pre-trained weights: from files, state dicts of any nesting with or without a head, or by name from torchvision and timm."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from data.errors import UserError
from data.files import check_plain
from models.networks.libraries import DEFAULT, ImageInput, Library, did_you_mean, find_library

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
DESCRIBED = ("backbone", "image_shape", "mirror")
"""Metadata of a file that Sibyl wrote of a feature network."""
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The environment variable by which PyTorch is told so."""


class State(NamedTuple):
    """A state dict that was found.

    Attributes:
        tensors: by the network's own names, a head's among them.
        prefix: what stood before these names.
        beside: the tensors that are not part of it, by their full names.
    """

    tensors: dict[str, Tensor]
    prefix: str
    beside: dict[str, Tensor]

    def neighbour(self, *names: str) -> list[Tensor]:
        """The tensors of these names next to the network, or next to what it is part of; none unless all are there."""
        place = self.prefix
        while place:
            place = place[: place.rstrip(".").rfind(".") + 1]
            if all(place + name in self.beside for name in names):
                return [self.beside[place + name] for name in names]
        return []

    @property
    def normalisation(self) -> list[Tensor]:
        """Mean and standard deviation ``[channels, 1, 1]`` of a :class:`~models.networks.backbones.Standardize` before the
        network; empty where there is none."""
        return self.neighbour("standardize.mean", "standardize.std") or self.neighbour("0.mean", "0.std")

    def head(self, name: str | None, features: int) -> nn.Linear | None:
        """The network's last layer, called ``name``, where it is a linear one of so many ``features``."""
        keys = [f"{name}.weight", f"{name}.bias"]
        found = [self.tensors[key] for key in keys if key in self.tensors]
        if not found or found[0].dim() != 2 or found[0].shape[1] != features:
            return None
        layer = nn.Linear(features, len(found[0]), bias=len(found) > 1)
        layer.load_state_dict(dict(zip(("weight", "bias"), found, strict=False)))
        return layer


def size_to_load(image_size: int | None, name: str, weights: str | None) -> int | None:
    """Height and width that data are to be loaded at: as asked for, or else as given weights have it.

    The weights are read once here, or downloaded, so that those that cannot be had are known before any data are loaded.

    Args:
        image_size: what is asked for.
        name, weights: see :func:`read_weights`; no weights say nothing.

    Raises:
        UserError: see :func:`read_weights`.
    """
    if weights is None:
        return image_size
    read_weights(name, weights)
    return image_size or own_image_size(name, weights)


def own_image_size(name: str, weights: str) -> int | None:
    """Height and width of the images that weights were trained on; ``None`` where neither a file nor a library says.

    Args:
        name, weights: see :func:`read_weights`. Of a file without a word on it, of a network of torchvision or timm, it is the
            size of the library's default weights.

    Raises:
        UserError: see :func:`read_weights`; a file is not read but for its description.
    """
    if Path(weights).is_file() and (described := read_description(Path(weights))):
        return int(described["image_shape"][-1])
    expected = expected_images(name, weights)
    return expected.size if expected else None


def expected_images(name: str, weights: str) -> ImageInput | None:
    """What images the weights of a network of torchvision or timm expect; ``None`` for other networks.

    A file says nothing of this: it is taken for one of the library's own, so that torchvision's networks see images that are
    standardised by ImageNet's mean and standard deviation.

    Raises:
        UserError: see :func:`read_weights`.
    """
    found = library_of(name)
    if Path(weights).is_file():
        return found[0].images(found[1]) if found else None
    library, inner = check_name(name, weights)
    return library.images(inner, weights)


def read_weights(name: str, weights: str) -> Any:
    """Tensors by name, possibly in dictionaries of dictionaries.

    Args:
        name: of the network.
        weights: a file, or the name of weights that torchvision or timm have of it, which they download: ``IMAGENET1K_V1``,
            ``DEFAULT``.

    Raises:
        UserError: no such file or weights, a damaged file or one with more than tensors, or no network to download by.
    """
    if Path(weights).is_file():
        return read_file(Path(weights))
    library, inner = check_name(name, weights)
    return download(library, inner, weights).state_dict()


def library_of(name: str) -> tuple[Library, str] | None:
    """See :func:`~models.networks.libraries.find_library`.

    Raises:
        UserError: its errors.
    """
    try:
        return find_library(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_name(name: str, weights: str) -> tuple[Library, str]:
    """The library that has weights of this name, and its name of the network.

    Raises:
        UserError: there are none.
    """
    if Path(weights).suffix in SUFFIXES or Path(weights).exists() or "/" in weights:
        raise UserError(f"there is no file {weights}: give one of weights, or the name of torchvision's, such as {DEFAULT}")
    if (found := library_of(name)) is None:
        raise UserError(f"{weights} is no file, and neither torchvision nor timm (where installed) has weights of {name}")
    library, inner = found
    known = library.weights(inner)
    if weights not in known and not (known and weights == DEFAULT):
        meant = did_you_mean(weights, known)
        listed = f"{library.title} has {', '.join(known[:8])}{' …' if len(known) > 8 else ''}" if known else "there are none"
        raise UserError(f"{weights} is neither a file nor weights of {name}{meant}{' ' if meant else ': '}{listed}")
    return found


def download(library: Library, name: str, weights: str) -> nn.Module:
    """A library's network with its weights by name.

    Raises:
        UserError: they are not in the library's cache, and there is no network to download by.
    """
    try:
        with tensors_alone():
            return library.classifier(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network; a broken download
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the weights {weights} of {name} cannot be downloaded ({reason}): fetch {library.url(name, weights)} where there"
            " is a network, and give the file in place of the name"
        ) from error


@contextmanager
def tensors_alone() -> Iterator[None]:
    """A block in which ``torch.load`` reads tensors and plain values alone, whoever calls it and however."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before


def read_description(path: Path) -> dict[str, Any] | None:
    """What a file that Sibyl wrote of a feature network says of it; ``None`` for other files.

    Raises:
        UserError: a damaged safetensors file.
    """
    if path.suffix != ".safetensors":
        return None
    metadata = open_safetensors(path)[1]
    if not all(key in metadata for key in DESCRIBED):
        return None
    try:
        return {key: json.loads(value) for key, value in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_file(path: Path) -> Any:
    """The content of a file: a safetensors one, or one of ``torch.save``, of which tensors and plain values alone are read.

    Raises:
        UserError: it is damaged, or has code in it.
    """
    check_plain(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path, tensors=True)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives of TorchScript, which are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no archive, or a broken one, raises whatever its bytes lead to
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if "Weights only load failed" in reason or "weights_only" in reason:
            raise UserError(
                f"{path} holds more than tensors, which is not read for safety (or it is damaged): save the state dict alone,"
                " torch.save(network.state_dict(), file)"
            ) from error
        raise UserError(f"{path} is damaged or no state dict: {reason[:160]}") from error


def open_safetensors(path: Path, *, tensors: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (where asked for) and metadata.

    Raises:
        UserError: it is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # a broken file raises whatever its bytes lead to
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} is damaged or no safetensors file: {reason[:160]}") from error


def find_state(content: Any, names: Collection[str], source: str, network: str) -> State:
    """The state dict of a network in what a file holds.

    It may lie in dictionaries (``{"state_dict": ..., "epoch": 3}``), and its names may have a prefix (``module.``, ``model.``,
    ``backbone.``): the place where most names are the network's is taken, and of several the first.

    Args:
        content: what :func:`read_weights` gives.
        names: of the network's parameters and buffers.
        source, network: what error messages call the file and the network.

    Raises:
        UserError: nowhere in it are half of the names.
    """
    best, found = 0, State({}, "", {})
    seen: list[str] = []
    for table in tables(content):
        seen += table
        cuts = ((key[:i], key[i:]) for key in table for i in (0, *(dot.end() for dot in re.finditer(r"\.", key))))
        hits = Counter(start for start, rest in cuts if rest in names).most_common(1)
        if hits and hits[0][1] > best:
            (prefix, best), *_ = hits
            inside = {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}
            found = State(inside, prefix, {key: value for key, value in table.items() if not key.startswith(prefix)})
    if best < len(names) / 2:
        holds = f"it has {some(seen)}" if seen else f"it is a {type(content).__name__} without tensors by name"
        raise UserError(f"{source} holds no weights of {network}: {holds}")
    return found


def tables(content: Any) -> Iterator[dict[str, Tensor]]:
    """Every dictionary in ``content`` that has tensors by name, outermost first; names of torchvision's older DenseNets are
    those of today's."""
    if not isinstance(content, Mapping):
        return
    if found := {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}:
        yield {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value for key, value in found.items()}
    for value in content.values():
        yield from tables(value)


def load_exactly(network: nn.Module, state: dict[str, Tensor], source: str, name: str, *, head: str | None = None) -> None:
    """Put a state dict into ``network``; tensors of another precision are converted.

    Args:
        state: by the network's names.
        source, name: what error messages call the file and the network.
        head: the name of the last layer, which ``network`` does without: its tensors are dropped, as are those of the heads
            that some networks of torchvision have on the way.

    Raises:
        UserError: tensors that are missing, not the network's, of another shape, or not finite.
    """
    dropped = ("aux1.", "aux2.", "AuxLogits.", *([f"{head}."] if head else []))
    kept = {key: value for key, value in state.items() if not key.startswith(dropped)}
    own = network.state_dict()
    for key in kept.keys() & own.keys():
        if kept[key].shape != own[key].shape:
            shapes = ["×".join(map(str, tensor.shape)) or "one number" for tensor in (kept[key], own[key])]
            raise UserError(f"{source} does not fit {name}: {key} is {shapes[0]}, and {shapes[1]} in {name}")
        if kept[key].is_floating_point() and not bool(kept[key].isfinite().all()):
            raise UserError(f"{source}: {key} holds numbers that are not finite")
        if kept[key].is_floating_point() != own[key].is_floating_point() or kept[key].is_quantized:
            raise UserError(f"{source}: {key} is of type {kept[key].dtype}, {name} needs {own[key].dtype}: convert it first")
    try:
        missing, unexpected = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit {name}: {str(error).splitlines()[-1].strip()[:160]}") from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]  # files of old versions have none
    if missing or unexpected:
        parts = [f"{text} {some(keys)}" for text, keys in (("it lacks", missing), ("it has", unexpected)) if keys]
        raise UserError(f"{source} does not fit {name}: {'; '.join(parts)}")


def some(keys: Collection[str], most: int = 3) -> str:
    """A few of the ``keys``, at ``most`` so many, and how many there are."""
    named = ", ".join(list(keys)[:most])
    return named if len(keys) <= most else f"{named} … ({len(keys)} tensors)"
