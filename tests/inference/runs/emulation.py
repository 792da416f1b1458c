"""CUDA graphs on a CPU: what a capture dispatches is noted, and a replay does it again into the same memory.

Torch's own ``make_graphed_callables`` runs on top, so rehearsals, static inputs, outputs and gradients are those of a GPU. As
there, nothing that Python decides is decided again, what reads a number back breaks a capture off, graphs of one pool write
over one another's numbers, a pool that has lost its graphs is dead, and so is a capture during which a graph ends.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference import elbo
from inference.runs import graphs

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero}
"""Operators whose result, or its shape, the host waits for."""


class Pool:
    """Stands in for what ``torch.cuda.graph_pool_handle`` gives."""

    def __init__(self) -> None:
        self.used, self.graphs = False, weakref.WeakSet[Graph]()

    def enter(self, graph: Graph) -> None:
        """Capture a graph into it."""
        if self.used and not self.graphs:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.used = True
        self.graphs.add(graph)


class Graph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    numbers: ClassVar[Iterator[int]] = itertools.count()
    underway, broken = False, False

    def __init__(self) -> None:
        self.steps: list[tuple[Any, tuple, dict, Any]] = []
        self.pool, self.number = Pool(), next(self.numbers)

    def __del__(self) -> None:
        Graph.broken = Graph.broken or (Graph.underway and bool(self.steps))

    @torch.no_grad()
    def replay(self) -> None:
        """Do again what was captured. What other graphs of the pool have made is lost, but for this one's other pass."""
        if not self.steps:
            raise RuntimeError("a graph without a capture cannot be replayed")
        others = (other for other in self.pool.graphs if other.number // 2 != self.number // 2)
        for func, *_, made in itertools.chain.from_iterable(other.steps for other in others):
            for lost in tensors(made) if makes(func) else ():
                lost.fill_(torch.nan if lost.is_floating_point() else 0)
        for func, args, kwargs, made in self.steps:
            if makes(func):
                for old, new in zip(tensors(made), tensors(func(*args, **kwargs)), strict=True):
                    old.copy_(new)
            elif any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments):
                func(*args, **kwargs)


def makes(func: Any) -> bool:
    """Whether an operator writes to new memory alone: it neither shows what is there nor changes it."""
    return not any(one.alias_info is not None for one in (*func._schema.arguments, *func._schema.returns))


def tensors(made: Any) -> list[Tensor]:
    """Those that an operator has made."""
    return [one for one in tree_leaves(made) if isinstance(one, Tensor)]


class Recorder(TorchDispatchMode):
    """Notes what is dispatched, as steps of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        made = func(*args, **(kwargs or {}))
        self.graph.steps.append((func, args, kwargs or {}, made))
        return made


@contextlib.contextmanager
def capture(graph: Graph, *, pool: Pool, **_: Any) -> Iterator[None]:
    """Stands in for ``torch.cuda.graph``."""
    pool.enter(graph)
    graph.pool, Graph.underway, Graph.broken = pool, True, False
    try:
        with Recorder(graph):
            yield
    finally:
        Graph.underway = False
    if Graph.broken:
        raise RuntimeError("a graph has ended during the capture")


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Torch's, which on a CPU looks at the labels first."""
    return (labels[..., None] == torch.arange(num_classes)).long()


def emulate(patch: pytest.MonkeyPatch) -> None:
    """Take tensors on the CPU for tensors on a GPU where steps are captured."""
    fork: Callable[..., Any] = torch.random.fork_rng
    there: dict[str, Any] = {
        **{"CUDAGraph": Graph, "graph": capture, "graph_pool_handle": Pool, "Stream": object, "synchronize": lambda: None},
        **{"current_stream": lambda device: None, "stream": lambda stream: contextlib.nullcontext()},
    }
    for name, stand_in in there.items():
        patch.setattr(torch.cuda, name, stand_in)
    patch.setattr(torch.cuda.graphs, "_get_pool_id", lambda pool: pool, raising=False)
    patch.setattr(torch.random, "fork_rng", lambda devices, **_: fork(devices=[]))
    patch.setattr(torch.nn.functional, "one_hot", one_hot)
    patch.setattr(elbo, "validating_distributions", lambda: False)  # nor are values looked at there
    patch.setattr(graphs, "on_gpu", bool)
    patch.setattr(graphs, "renew_generator", lambda device: None)
