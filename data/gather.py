"""Many items as one tensor, whether or not they fit into memory."""

from __future__ import annotations

import math
import mmap
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import torch
from torch import Tensor

from data.errors import UserError

IN_MEMORY = 2**28
"""Bytes; a larger tensor stands in a file."""
AT_ONCE = 2**26
"""Bytes of rows that are copied together."""


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
    held, waiting = 0, joined(checked(chunks))
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
            return mapped(file, dtype, (-1, *item))
    except OSError as error:
        place = tempfile.gettempdir()
        raise UserError(f"no room for the items in {place} ({error.strerror}): set TMPDIR to a folder with more") from error


def mapped(file: BinaryIO, dtype: torch.dtype, shape: Sequence[int], start: int = 0) -> Tensor:
    """The numbers of an open ``file`` as a tensor whose pages are read when they are asked for, and never written back.

    Args:
        dtype, shape: of the tensor; one size may be -1, and the tensor then goes on to the file's end.
        start: the byte of the file that it starts with.

    Raises:
        OSError: the file cannot be mapped, or is empty.
    """
    count = -1 if -1 in shape else math.prod(shape)
    if count == 0:  # which torch takes from no buffer
        return torch.empty(shape, dtype=dtype)
    private = {"access": mmap.ACCESS_COPY}
    if sys.platform == "linux":  # which otherwise sets memory aside for changes, and has none for a file larger than it
        private = {"flags": mmap.MAP_PRIVATE | NO_RESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    content = mmap.mmap(file.fileno(), 0, **private)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start).view(torch.Size(shape))


NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux's number, which Python has a name for since 3.13."""


def take(items: Tensor, rows: Tensor) -> Tensor:
    """``items[rows]``, some at a time, so that many are mapped from a file again.

    Args:
        rows: indices ``[n]``.
    """
    row = max(1, items[:1].nbytes)
    if len(rows) * row <= IN_MEMORY:
        return items[rows]
    return gather(items[some] for some in rows.split(max(1, AT_ONCE // row)))


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


def joined(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The rows of ``chunks`` in blocks of :data:`AT_ONCE` bytes, or of a larger chunk; each chunk is copied when it comes.

    Small tensors that stay while a network makes the next ones break up the memory that it takes and gives back: features
    would hold several times their size.
    """
    block, filled = None, 0
    for chunk in chunks:
        if block is not None and filled + len(chunk) > len(block):
            yield block[:filled]
            block = None
        if block is None:
            row = max(1, math.prod(chunk.shape[1:]) * chunk.element_size())
            block, filled = chunk.new_empty(max(len(chunk), AT_ONCE // row), *chunk.shape[1:]), 0
        block[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    if block is not None:
        yield block[:filled]


def write(file: BinaryIO, chunk: Tensor) -> None:
    """Append a chunk's numbers."""
    file.write(chunk.flatten().view(torch.uint8).numpy().data)
