"""Training steps without the share of Python: what a step computes is captured once for each shape, and replayed."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from data.errors import DataWarning
from inference.elbo import RateDistortion, RateDistortionModule
from inference.runs.compiling import JointProgram, restored, unchanged


class CapturedTerms:
    """:meth:`~inference.elbo.RateDistortionModule.terms` of an objective, one capture for each shape of its arguments: the same
    numbers and gradients, for torch's generator is where it would be. On a GPU captures are CUDA graphs, on a CPU, where
    ``compiles``, programs of torch's compiler, which differ by rounding. Elsewhere, and for guides that do not say that
    they are ``capturable``, terms are as ever.

    A step of ours is many small operations, and Python takes longer to ask for them one by one than a GPU to run them, or on a
    CPU as long. A guide is ``capturable`` where no step of its own or of its model waits for the device, and none depends
    on anything but tensors that stay where they are; where a capture fails nonetheless, there is none from then on.

    A capture is of parameters and buffers where they lie, and of what else the objective was when it was captured:
    :meth:`forget` it where that becomes another. A graph writes gradients to the same place each time, so they must not be
    added up over several steps, see :func:`alone`. Copies, and what is read from a pickle, have no captures.

    Attributes:
        compiles: whether to on a CPU.
        worth: a shape is captured when it comes for so many times: a graph costs about as much as so many steps kernel by
            kernel, and of tasks of varied shapes most come once or twice.
        worth_compiling: the same of programs, each of which takes 10 to 30 seconds, as much as thousands of steps save. So
            tasks of one shape are compiled soon, and no run of varied ones spends its time on that.
    """

    worth, worth_compiling = 5, 200

    def __init__(self, *, compiles: bool = False) -> None:
        self.compiles = compiles
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

    def __call__(self, objective: RateDistortionModule, *args: Any, beta: float | None = None) -> RateDistortion:
        """Distortion and rate of a batch, site by site, nats.

        Args:
            beta: weight of the rate in what is differentiated, where it is not the objective's.
        """
        if self.failed or not self.may_capture(objective, args):
            return objective.terms(*args)
        tensors, beta = tensors_of(args), objective.elbo.beta if beta is None else beta
        key = (*map(described, args), *surroundings(objective), on_gpu(tensors) or bool(beta))
        if key not in self.captured:
            self.seen[key] += 1
            if self.seen[key] >= (self.worth if on_gpu(tensors) else self.worth_compiling):
                self.capture(key, objective, args, beta)
        elif isinstance(made := self.captured[key], CompiledTerms) and not made.proven:
            self.prove(made, tensors, beta)
        known = self.captured.get(key)
        return objective.terms(*args) if known is None else known.read(tensors, beta)

    def may_capture(self, objective: RateDistortionModule, args: tuple) -> bool:
        """Whether a step with these ``args`` may be captured: by a guide that says so, where captures are made, and beside
        tensors of plain values alone, which are known by what they are."""
        tensors, plain = tensors_of(args), all(value is None or isinstance(value, Tensor | int | float | str) for value in args)
        capturable = plain and getattr(objective.guide, "capturable", False) and torch.is_grad_enabled()
        return capturable and (on_gpu(tensors) or (self.compiles and on_cpu(tensors)))

    def capture(self, key: Hashable, objective: RateDistortionModule, args: tuple, beta: float) -> None:
        """Capture the terms for arguments such as ``args``, under a ``key``; or note that it failed. The rate has a weight of
        ``beta``, 0 or not."""
        if on_gpu(tensors_of(args)):
            try:
                self.captured[key] = self.graph(objective, args)
            except RuntimeError:
                self.failed = True
                self.forget()
        else:
            with self.going_on_without():
                self.captured[key] = CompiledTerms(objective, args, beta)

    def prove(self, compiled: CompiledTerms, tensors: list[Tensor], beta: float) -> None:
        """Hold a program against the step as it is on ``tensors`` that it was not made from, or do without from now on."""
        with self.going_on_without():
            compiled.prove(tensors, beta)

    @contextmanager
    def going_on_without(self) -> Iterator[None]:
        """Whatever a compiler fails by, training goes on without one, and it is said."""
        try:
            yield
        except Exception as error:
            self.failed = True
            self.forget()
            warnings.warn(f"training steps are not compiled: {first_line(error)}", DataWarning, stacklevel=2)

    def graph(self, objective: RateDistortionModule, args: tuple) -> Terms:
        """The terms for arguments such as ``args`` as a CUDA graph.

        Raises:
            RuntimeError: they cannot be.
        """
        terms = Terms(objective, args)
        given = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors_of(args))
        device = given[0].device
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        mean_the_stream()
        try:
            with rehearsing(objective, device):
                torch.cuda.make_graphed_callables(terms, given, allow_unused_input=True, pool=self.pool)
        except RuntimeError:
            renew_generator(device)
            raise
        return terms


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

    def read(self, tensors: Sequence[Tensor], beta: float) -> RateDistortion:
        """The terms by their names; the rate has a weight of ``beta`` in what is differentiated."""
        values = iter(self.values(tensors, beta))
        distortions, rates = ({name: next(values) for name in names} for names in self.sites)
        return RateDistortion(distortions, rates, self.objective.elbo.beta)

    def values(self, tensors: Sequence[Tensor], beta: float) -> tuple[Tensor, ...]:
        """Of :meth:`forward`, however they are computed."""
        return self(*tensors)


class CompiledTerms(Terms):
    """The same, compiled.

    Args:
        objective, args: see :class:`Terms`.
        beta: weight of the rate; with 0 it is not differentiated.

    Attributes:
        proven: whether it was held against the terms on a batch that it was not made from, where numbers that Python has read
            are others.

    Raises:
        RuntimeError: they cannot be, see :class:`~inference.runs.compiling.JointProgram`.
    """

    proven = False

    def __init__(self, objective: RateDistortionModule, args: tuple, beta: float) -> None:
        super().__init__(objective, args)
        given = tensors_of(args)
        with unchanged(objective):
            self(*given)  # for the names of its sites
        self.program = JointProgram(self, given, len(self.weights(beta)))
        self.program.prove(given, self.weights(beta))

    def weights(self, beta: float) -> list[float]:
        """Of the terms in what is differentiated."""
        distortions, rates = map(len, self.sites)
        return [1.0] * distortions + ([beta] * rates if beta else [])

    def prove(self, tensors: Sequence[Tensor], beta: float) -> None:
        """Hold the program against the terms as they are on other ``tensors``.

        Raises:
            RuntimeError: it computes something else.
        """
        self.program.prove(tensors, self.weights(beta))
        self.proven = True

    def values(self, tensors: Sequence[Tensor], beta: float) -> tuple[Tensor, ...]:
        return self.program(tensors, self.weights(beta))


def first_line(error: Exception) -> str:
    """What an ``error`` says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among ``args``."""
    return [value for value in args if isinstance(value, Tensor)]


def described(value: Any) -> Hashable:
    """What a capture depends on of an argument; a graph copies it to a place of its own, a program reads it as it lies."""
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.dtype, value.requires_grad, () if value.is_cuda else value.stride()


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


def on_cpu(tensors: Sequence[Tensor]) -> bool:
    """Whether there are any ``tensors``, all lie there, and none is rounded on the way."""
    return bool(tensors) and all(tensor.device.type == "cpu" for tensor in tensors) and not torch.is_autocast_enabled("cpu")


@contextmanager
def rehearsing(objective: RateDistortionModule, device: torch.device) -> Iterator[None]:
    """Around a capture, which runs the ``objective`` a few times before: what that changes is afterwards as it was (torch's
    generators, buffers such as the statistics of batch norm, and the stream, which a capture that breaks off leaves behind).
    No garbage is collected, for in it may be a graph, and the end of one breaks off the capture of another."""
    collecting, stream = gc.isenabled(), torch.cuda.stream(torch.cuda.current_stream(device))
    gc.disable()
    try:
        with restored(objective), stream, torch.random.fork_rng([device], device_type="cuda"):
            yield
    finally:
        if collecting:
            gc.enable()


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
