"""Many items as one tensor, whether or not they fit into memory."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import torch
from torch import Tensor

from data.errors import UserError

IN_MEMORY = 2**28
"""Bytes; a larger tensor stands in a file."""


def gather(chunks: Iterable[Tensor]) -> Tensor:
    """``torch.cat(list(chunks))``, for chunks that need not fit into memory together.

    Beyond :data:`IN_MEMORY` bytes the items stand in a temporary file that is mapped into memory. The tensor is used as any
    other: what is asked for is read from the file, and the system takes the memory back when others need it. The file has no
    name and goes with the tensor; the environment variable ``TMPDIR`` says where there is room for it.

    Args:
        chunks: ``[some, *item]`` each, of one type and on any device.

    Returns:
        ``[n, *item]``, on the CPU.

    Raises:
        UserError: no chunks, chunks of different items, or no room for the file.
    """
    kept: list[Tensor] = []
    held, waiting = 0, checked(chunks)
    for chunk in waiting:
        kept.append(chunk)
        held += chunk.nbytes
        if held > IN_MEMORY:
            break
    else:
        if not kept:
            raise UserError("there are no items: give one at least")
        return torch.cat(kept)
    item, dtype = kept[0].shape[1:], kept[0].dtype
    try:
        with tempfile.TemporaryFile() as file:
            kept.reverse()
            while kept:
                write(file, kept.pop())
            for chunk in waiting:
                write(file, chunk)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        place = tempfile.gettempdir()
        raise UserError(f"no room for the items in {place} ({error.strerror}): set TMPDIR to a folder with more") from error
    return torch.frombuffer(mapped, dtype=dtype).view(-1, *item)


def checked(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The chunks on the CPU, each of them like the first.

    Raises:
        UserError: one is not.
    """
    first = None
    for chunk in chunks:
        first = chunk if first is None else first
        if (chunk.shape[1:], chunk.dtype) != (first.shape[1:], first.dtype):
            kinds = [f"{'×'.join(map(str, part.shape[1:])) or 'single'} {part.dtype}" for part in (first, chunk)]
            raise UserError(f"the items are not of one kind: {kinds[0]} and {kinds[1]}; give all one shape and type")
        yield chunk.detach().cpu().contiguous()


def write(file: BinaryIO, chunk: Tensor) -> None:
    """Append a chunk's numbers."""
    file.write(chunk.flatten().view(torch.uint8).numpy().data)
