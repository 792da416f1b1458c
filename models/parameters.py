"""Numbers of a module that are learned or fixed, as its user chooses."""

from __future__ import annotations

from torch import Tensor, nn


def declare(module: nn.Module, name: str, value: Tensor, *, learned: bool) -> None:
    """Give the module a parameter where the value is learned, else a buffer of the same name.

    A frozen parameter would not do: Pyro's ``SVI`` trains every parameter that a PyroModule reads, and thaws it for that.
    """
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
