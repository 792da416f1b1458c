"""Training steps on a GPU without the host's share: what a step computes is captured once for each shape, and replayed."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from inference.elbo import RateDistortion, RateDistortionModule


class CapturedTerms:
    """:meth:`~inference.elbo.RateDistortionModule.terms` of an objective, on a GPU as CUDA graphs, one for each shape of its
    arguments: the same numbers and gradients, for torch's generator is where it would be. Elsewhere, and for guides that do not
    say that they are ``capturable``, as ever.

    A step of ours is many small kernels, and a host takes longer to launch them one by one than a GPU to run them. A graph is
    launched as one. A guide is ``capturable`` where no step of its own or of its model waits for the device, and none depends
    on anything but tensors that stay where they are; where a capture fails nonetheless, there is none from then on.

    A graph is of parameters and buffers where they lie, and of what else the objective was when it was captured: :meth:`forget`
    it where that becomes another. It writes gradients to the same place each time, so they must not be added up over several
    steps, see :func:`alone`. Copies, and what is read from a pickle, have no graphs.

    Attributes:
        worth: a shape is captured when it comes for so many times: a capture costs about as much as so many steps kernel by
            kernel, and of tasks of varied shapes most come once or twice.
    """

    worth = 5

    def __init__(self) -> None:
        self.captured: dict[Hashable, Terms] = {}
        self.seen: Counter[Hashable] = Counter()
        self.failed = False
        self.pool: Any = None

    def __reduce__(self) -> tuple[type[CapturedTerms], tuple[()]]:
        return type(self), ()

    def forget(self) -> None:
        """Capture anew from now on."""
        self.captured.clear()
        self.pool = None  # without a graph it is dead, and whoever captures into it fails

    def __call__(self, objective: RateDistortionModule, *args: Any) -> RateDistortion:
        """Distortion and rate of a batch, site by site, nats."""
        if self.failed or not capturable(objective, args):
            return objective.terms(*args)
        key = (*map(described, args), *surroundings(objective))
        if key not in self.captured:
            self.seen[key] += 1
            if self.seen[key] >= self.worth:
                self.capture(key, objective, args)
        known = self.captured.get(key)
        return objective.terms(*args) if known is None else known.read(tensors_of(args))

    def capture(self, key: Hashable, objective: RateDistortionModule, args: tuple) -> None:
        """Capture the terms for arguments such as ``args``, under a ``key``; or note that it failed."""
        terms = Terms(objective, args)
        given = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors_of(args))
        device = given[0].device
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        mean_the_stream()
        try:
            with rehearsing(objective, device):
                torch.cuda.make_graphed_callables(terms, given, allow_unused_input=True, pool=self.pool)
        except RuntimeError:
            self.failed = True
            self.forget()
            renew_generator(device)
        else:
            self.captured[key] = terms


class Terms(nn.Module):
    """The terms of an objective as a tuple, from the tensors among its arguments alone, as a capture needs them.

    Args:
        args: of the objective; those that are no tensors stay as they are.
    """

    def __init__(self, objective: RateDistortionModule, args: tuple) -> None:
        super().__init__()
        self.objective = objective
        self.args = tuple(None if isinstance(value, Tensor) else value for value in args)
        self.places = [place for place, value in enumerate(args) if isinstance(value, Tensor)]
        self.sites: tuple[list[str], list[str]] = ([], [])

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Distortions, then rates."""
        args = list(self.args)
        for place, tensor in zip(self.places, tensors, strict=True):
            args[place] = tensor
        terms = self.objective.terms(*args)
        self.sites = list(terms.distortions), list(terms.rates)
        return (*terms.distortions.values(), *terms.rates.values())

    def read(self, tensors: Sequence[Tensor]) -> RateDistortion:
        """The terms by their names."""
        values = iter(self(*tensors))
        distortions, rates = ({name: next(values) for name in names} for names in self.sites)
        return RateDistortion(distortions, rates, self.objective.elbo.beta)


def capturable(objective: RateDistortionModule, args: tuple) -> bool:
    """Whether a step with these ``args`` may be captured: on a GPU, by a guide that says so, and beside tensors of plain values
    alone, which are known by what they are."""
    plain = all(value is None or isinstance(value, Tensor | int | float | str) for value in args)
    return plain and getattr(objective.guide, "capturable", False) and on_gpu(tensors_of(args)) and torch.is_grad_enabled()


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among ``args``."""
    return [value for value in args if isinstance(value, Tensor)]


def described(value: Any) -> Hashable:
    """What a graph depends on of an argument."""
    return (value.shape, value.dtype, value.requires_grad) if isinstance(value, Tensor) else value


def surroundings(objective: RateDistortionModule) -> Iterator[Hashable]:
    """What a graph depends on beside its arguments: in which mode each module is, where parameters and buffers lie, and which
    are trained."""
    for module in objective.modules():
        yield module.training
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor.data_ptr()
                yield tensor.requires_grad


def on_gpu(tensors: Sequence[Tensor]) -> bool:
    """Whether there are any ``tensors``, and all lie there."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


@contextmanager
def rehearsing(objective: RateDistortionModule, device: torch.device) -> Iterator[None]:
    """Around a capture, which runs the ``objective`` a few times before: what that changes is afterwards as it was (torch's
    generators, buffers such as the statistics of batch norm, and the stream, which a capture that breaks off leaves behind).
    No garbage is collected, for in it may be a graph, and the end of one breaks off the capture of another."""
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.stream(torch.cuda.current_stream(device)), torch.random.fork_rng([device], device_type="cuda"):
            yield
    finally:
        if collecting:
            gc.enable()
        with torch.no_grad():
            for buffer, before in buffers:
                if not buffer.equal(before):  # a write, even of the same numbers, is a change to those who count them
                    buffer.copy_(before)


def mean_the_stream() -> None:
    """Tell torch that gradients are meant to be added up on the stream of a capture; newer ones warn of it."""
    tell = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if tell is not None:
        tell(False)


def renew_generator(device: torch.device) -> None:
    """Give a GPU's generator another state with the same numbers: a capture that breaks off leaves the old one in a mode in
    which nothing can be drawn any more."""
    generator, fresh = torch.cuda.default_generators[device.index], torch.Generator(device)
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


def alone(module: lightning.LightningModule) -> bool:
    """Whether the gradients of a step are those of one backward pass in one process, so that it may be captured."""
    trainer = module.trainer
    return trainer.world_size == 1 and getattr(trainer, "accumulate_grad_batches", 1) == 1
