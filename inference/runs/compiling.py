"""Training steps by torch's compiler: what a step computes, forward and backward, as one program for each shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import validation_enabled as validate_distributions
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

ROUNDING = 1e-2
"""How far, in parts of their length, the gradients of a compiled step may be from those of the step as it is: far more than
rounding makes, and far less than a compiler that is wrong."""


class JointProgram:
    """Numbers that a module computes and the gradient of their weighted sum, compiled as one program.

    ``torch.compile`` follows Python, which it cannot through Pyro's handlers, and cuts what it finds at the backward pass, over
    which nothing is fused then. Here the operations of both passes are noted while they are done once, and these are what it
    compiles. So the weights of the sum have to be known in the forward pass: whoever weighs the numbers otherwise is refused.

    The program draws the random numbers that the module would and changes the same buffers. What Python decided or read while
    operations were noted stays as it was: :meth:`prove` it on other tensors.

    Args:
        module: from tensors to a tuple of 0-dimensional ones.
        given: tensors such as it takes.
        count: of how many numbers, from the first, is the sum. The others have no gradient.

    Raises:
        RuntimeError: the module reads a number back.
    """

    def __init__(self, module: nn.Module, given: Sequence[Tensor], count: int) -> None:
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.state = list(state.values())
        self.trained = [place for place, tensor in enumerate((*self.state, *given)) if tensor.requires_grad]
        self.reached: list[int] = []

        def both(state_now: list[Tensor], given: list[Tensor], weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            numbers = functional_call(module, dict(zip(state, state_now, strict=True)), tuple(given))
            found = self.gradients((torch.stack(numbers[:count]) * weights).sum(), [*state_now, *given])
            return [number.detach() for number in numbers], found

        self.module, self.plain = module, both
        with unchanged(module), validate_distributions(False), Unasked():
            noted = make_fx(both)(self.state, apart(given), self.tensor_of([1.0] * count, given))
        self.program: Callable[..., tuple[list[Tensor], list[Tensor]]] = torch.compile(
            noted, fullgraph=True, dynamic=False, options={"fallback_random": True, "cpp_wrapper": True}
        )

    def prove(self, given: Sequence[Tensor], weights: Sequence[float]) -> None:
        """Hold the program against the module, on what it is called with, without a trace of that.

        Raises:
            RuntimeError: it computes something else than the module does, or does not run.
        """
        called = self.state, apart(given), self.tensor_of(weights, given)
        with unchanged(self.module), torch.enable_grad():
            expected = self.plain(*called)
        with unchanged(self.module), torch.no_grad():
            compare(self.program(*called), expected)

    def tensor_of(self, weights: Sequence[float], given: Sequence[Tensor]) -> Tensor:
        """The ``weights`` of the numbers in the type that these have."""
        return torch.tensor(weights, dtype=next(t.dtype for t in (*self.state, *given) if t.is_floating_point()))

    def gradients(self, total: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of ``total`` with respect to those among the ``tensors`` that are trained and that it depends on."""
        if not total.requires_grad:
            return []
        found = torch.autograd.grad(total, [tensors[place] for place in self.trained], allow_unused=True)
        self.reached = [place for place, gradient in zip(self.trained, found, strict=True) if gradient is not None]
        return [gradient for gradient in found if gradient is not None]

    def __call__(self, given: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, ...]:
        """The numbers of ``given`` tensors, which can be differentiated where they are added up with these ``weights`` times
        whatever is the same for all."""
        tensors = [*self.state, *given]
        return Joint.apply(self, list(given), weights, *(tensors[place] for place in self.reached))


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same ``tensors`` without their past, each by itself: one that stands in two places would be noted as one, and read in
    both of them where others come later."""
    return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]


class Joint(torch.autograd.Function):
    """A :class:`JointProgram` as an operation of autograd, which is differentiated once."""

    @staticmethod
    def forward(ctx: Any, program: JointProgram, given: list[Tensor], weights: Sequence[float], *reached: Tensor):
        numbers, ctx.gradients = program.program(program.state, given, program.tensor_of(weights, given))
        ctx.weights = weights
        return tuple(numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *pulls: Tensor):
        """The gradients, times what is common to all numbers.

        Raises:
            RuntimeError: they are asked for again, or numbers are weighed otherwise.
        """
        pulled, gradients = torch.stack(pulls).tolist(), ctx.gradients
        ctx.gradients = None  # their memory
        if gradients is None:
            raise RuntimeError("a compiled step has its gradient once")
        common = pulled[0] / ctx.weights[0]
        expected = [common * weight for weight in ctx.weights] + [0.0] * (len(pulled) - len(ctx.weights))
        if not all(math.isclose(*pair, rel_tol=1e-5) for pair in zip(pulled, expected, strict=True)):
            raise RuntimeError("a compiled step has the gradient of distortion + β · rate alone, not of its parts")
        return None, None, None, *(torch._foreach_mul(gradients, common) if gradients else ())


class Unasked(TorchFunctionMode):
    """Inside, labels are not asked whether they are classes: an answer would be read back, which is no operation."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.one_hot and args:
            labels, way = args[0], args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
            if way > 0:
                return (labels[..., None] == torch.arange(way, device=labels.device)).long()
        return func(*args, **kwargs)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Inside, a ``module`` may draw on the CPU and change its buffers: afterwards all is as it was."""
    with torch.random.fork_rng([]), restored(module):
        yield


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Afterwards the buffers of a ``module``, such as the statistics of batch norm, are as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not buffer.equal(before):  # a write, even of the same numbers, is a change to those who count them
                    buffer.copy_(before)


def compare(found: tuple[list[Tensor], list[Tensor]], expected: tuple[list[Tensor], list[Tensor]]) -> None:
    """Refuse numbers and gradients that are ``found`` where others were ``expected``.

    Raises:
        RuntimeError: they are further apart than :data:`ROUNDING`; gradients all together, for one that is 0 is all rounding.
    """
    length, apart = (torch.nn.utils.get_total_norm(of) for of in (expected[1], list(map(torch.sub, found[1], expected[1]))))
    same = all(torch.allclose(one, other, rtol=ROUNDING) for one, other in zip(found[0], expected[0], strict=True))
    if not (same and apart <= ROUNDING * length):
        raise RuntimeError("what was compiled computes something else")
