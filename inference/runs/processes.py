"""A run of several processes: who we are, what all agree on, and which part of a batch is ours.

Processes come from ``--devices N``, which starts them for each stage of training, or from ``torchrun``, under which all of a
run's processes live from beginning to end. Either way a batch is one batch, of which each process takes a part: the same
tasks, items and random numbers that a single process would have taken (see :func:`data.seeding.part_of_batch`).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import lightning
import torch
import torch.distributed as group
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from data.errors import UserError
from data.seeding import draw_part, part_of_batch

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""After so long without an answer from another process a run gives up."""
DATA_PLATES = ("tasks", "data")
"""Plates along which a batch is shared."""


def launched() -> bool:
    """Whether ``torchrun`` started us."""
    return group.is_torchelastic_launched()


def rank() -> int:
    """Our number among the run's processes, from 0."""
    return group.get_rank() if group.is_initialized() else int(os.environ.get("RANK", 0)) if launched() else 0


def is_main() -> bool:
    """Whether we are the one that evaluates, writes, draws and prints."""
    return rank() == 0


def join() -> None:
    """Meet the run's other processes, where ``torchrun`` started us."""
    if launched() and not group.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        group.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(leave)


def leave() -> None:
    """Part from the other processes, without waiting for them."""
    if group.is_initialized():
        group.destroy_process_group()


def agree(make: Callable[[], T]) -> T:
    """What the main process makes, in every process.

    Raises:
        UserError: in every process, where the main one cannot make it.
    """
    join()
    if not group.is_initialized():
        return make()
    made: list[Any] = [None, None]
    if is_main():
        try:
            made[0] = make()
        except UserError as error:
            made[1] = str(error)
    group.broadcast_object_list(made, device=torch.device("cpu"))
    if made[1] is not None:
        raise UserError(made[1])
    return made[0]


def together(make: Callable[[slice], Tensor], rows: int) -> Tensor:
    """``[rows, ...]`` on the CPU, of which each process that trains makes its part, in all of them.

    Args:
        make: some of the rows.
        rows: how many there are in all.
    """
    world = group.get_world_size() if group.is_initialized() else 1
    if world == 1:
        return make(slice(0, rows))
    parts: list[Any] = [None] * world
    group.all_gather_object(parts, make(slice(rows * rank() // world, rows * (rank() + 1) // world)))
    return torch.cat(parts)


@contextmanager
def main_prints() -> Iterator[None]:
    """Drop what other processes than the main one print."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


class Part(NamedTuple):
    """Our part of a batch.

    The loss of the whole batch is the mean over processes of ``weight`` · (mean loss over our own rows), plus what does not
    depend on the rows; Lightning takes that mean of the gradients.

    Attributes:
        rows: ours.
        weight: our rows, in units of an equal share.
    """

    rows: slice
    weight: float

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Our rows of a tensor of the whole batch."""
        return tensor.narrow(dim, self.rows.start, self.rows.stop - self.rows.start)


@contextmanager
def our_part(module: lightning.LightningModule, batch: int) -> Iterator[Part]:
    """Inside the block random numbers for ``tasks`` and ``data`` are our rows of those of the whole batch.

    Use it around a training step, inside its :func:`~data.seeding.seeded` block or outside: every process must use the same
    seed.

    Args:
        batch: rows of the whole batch.

    Raises:
        UserError: fewer rows than processes.
    """
    world, number = module.trainer.world_size, module.global_rank
    if world == 1:
        yield Part(slice(0, batch), 1.0)
        return
    if batch < world:
        raise UserError(f"a batch of {batch} cannot be shared by {world} processes: raise `batch`, or lower `devices`")
    rows = slice(batch * number // world, batch * (number + 1) // world)
    with part_of_batch(rows, batch), SharedNoise():
        yield Part(rows, (rows.stop - rows.start) * world / batch)


class SharedNoise(Messenger):
    """Draws latent sites in the plates ``tasks`` and ``data`` as our rows of what one process would draw for the whole batch.

    The noise of a reparameterised site is drawn for the whole batch and cut, so a site's value is the very number it would
    have had in a single process.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or not getattr(msg["fn"], "has_rsample", False):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in DATA_PLATES and frame.vectorized:
                batch_shape = msg["fn"].batch_shape
                with NoiseOfBatch(len(batch_shape) + frame.dim, frame.size):
                    msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
                return


class NoiseOfBatch(TorchFunctionMode):
    """Inside this context a distribution draws its standard noise for the whole batch and keeps our rows.

    Args:
        dim: the batch's dimension, from the left, in the noise of one draw.
        size: our rows.
    """

    NORMAL = (torch.normal, torch.randn, torch.randn_like, Tensor.normal_)
    UNIFORM = (torch.rand, torch.rand_like, Tensor.uniform_)

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.dim, self.size = dim, size

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func not in (*self.NORMAL, *self.UNIFORM) or "generator" in kwargs:
            return func(*args, **kwargs)
        shape, like = noise_shape(args)
        if len(shape) <= self.dim or shape[self.dim] != self.size:
            return func(*args, **kwargs)
        kinds = {"dtype": kwargs.get("dtype"), "device": kwargs.get("device")}
        if like is not None:
            kinds = {"dtype": kinds["dtype"] or like.dtype, "device": kinds["device"] or like.device}
        standard = torch.randn if func in self.NORMAL else torch.rand
        noise = draw_part(lambda whole: standard(whole, **kinds), shape, self.dim)
        if func is torch.normal:
            return noise * args[1] + args[0]
        return args[0].copy_(noise) if func in (Tensor.normal_, Tensor.uniform_) else noise


def noise_shape(args: tuple) -> tuple[list[int], Tensor | None]:
    """The shape of the noise that is asked for by the arguments ``args``, and a tensor like it where one is given."""
    tensors = [part for part in args if isinstance(part, Tensor)]
    if tensors:
        return list(torch.broadcast_shapes(*(part.shape for part in tensors))), tensors[0]
    first = args[0] if args and isinstance(args[0], tuple | list) else args
    return [int(size) for size in first], None
