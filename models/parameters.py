"""Numbers of a module: learned or fixed, as its user chooses, and those that stand for their exponential."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def declare(module: nn.Module, name: str, value: Tensor, *, learned: bool) -> None:
    """Give the module a parameter where the value is learned, else a buffer of the same name.

    A frozen parameter would not do: Pyro's ``SVI`` trains every parameter that a PyroModule reads, and thaws it for that.
    """
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def logarithms(module: nn.Module) -> Iterator[nn.Parameter]:
    """The learned logarithms of a module and its parts: the parameters that each part names in its ``logarithms``.

    They stand for factors, such as scales, which training may have to change by orders of magnitude, so that an optimizer with
    steps of one size wants to give them longer ones. A part that names none has none.
    """
    for part in module.modules():
        for name in getattr(part, "logarithms", ()):
            if isinstance(number := getattr(part, name, None), nn.Parameter):
                yield number


def fusable(parameters: Iterable[Tensor]) -> bool:
    """Whether an optimizer can update all ``parameters`` in one call, torch's ``fused``."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
