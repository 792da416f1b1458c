"""Any distribution of PyTorch or Pyro as the prior m(w) of a network's weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from models.bayesian.weight_priors import WeightPrior


class DistributionWeightPrior(WeightPrior):
    """w ~ a distribution of your own: over one weight, the same for all, or over all P of them at once.

    ``StudentT(3.0, 0.0, 0.1)`` is of one weight; ``Normal(0, s).expand([P]).to_event(1)``, or ``Laplace(0, s)`` with ``s``
    ``[P]``, of all. Its numbers are fixed, and go to device and dtype with the module. The KL is exact where PyTorch or Pyro
    register one from a Gaussian (Normal, Laplace and others), and a Monte Carlo estimate otherwise.

    Args:
        distribution: over real numbers; batch_shape and event_shape together are ``[]`` or ``[P]``.

    Raises:
        ValueError: another shape, or a distribution that is not over all real numbers.
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        shape = tuple(distribution.batch_shape) + tuple(distribution.event_shape)
        if len(shape) > 1:
            raise ValueError(
                f"{name_of(distribution)} has shape {'×'.join(map(str, shape))}: it must be of one weight, or of all"
            )
        if not is_over_reals(distribution):
            raise ValueError(f"{name_of(distribution)} is not over all real numbers, which weights are: choose another")
        self.numbers: list[str] = []
        self.template = with_numbers(as_pyro(distribution), self.hold)

    def hold(self, number: Tensor) -> Tensor:
        """Keep a ``number``, one of the distribution's tensors, as a buffer; no state dict has it, for it is given again."""
        self.numbers.append(f"number{len(self.numbers)}")
        self.register_buffer(self.numbers[-1], number.detach(), persistent=False)
        return number.detach()

    def distribution(self) -> Any:
        """As it was given, with its numbers where the module is now."""
        numbers = iter(self.numbers)
        return with_numbers(self.template, lambda _: self.get_buffer(next(numbers)))

    def forward(self, num_weights: int) -> dist.TorchDistribution:
        given = self.distribution()
        if not (given.event_shape or given.batch_shape):
            return given.expand([num_weights]).to_event(1)
        own = (given.event_shape or given.batch_shape)[0]
        if own != num_weights:
            raise ValueError(f"the prior {name_of(given)} is over {own} weights, but {num_weights} are random")
        return given if given.event_shape else given.to_event(1)


def name_of(distribution: Distribution) -> str:
    """For people: that of the distribution of one number, ``Normal`` for ``Independent(Normal)``."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return type(distribution).__name__


def is_over_reals(distribution: Distribution) -> bool:
    """Whether every real number, or vector, is possible."""
    example = torch.tensor([-1e3, -0.5, 0.0, 0.5, 1e3])
    shape = distribution.batch_shape + distribution.event_shape
    try:
        inside = distribution.support.check(example.view(-1, *(1 for _ in shape)).expand(-1, *shape))  # type: ignore[union-attr]
    except NotImplementedError:
        return True  # it does not say
    return bool(inside.all())


def as_pyro(distribution: Distribution) -> Any:
    """PyTorch's distribution as Pyro has it, with the same numbers: one that a site can sample."""
    if isinstance(distribution, TorchDistributionMixin):
        return distribution
    kind, other = type(distribution), copy.copy(distribution)
    pyros = getattr(dist, kind.__name__, None)
    known = isinstance(pyros, type) and issubclass(pyros, kind)
    other.__class__ = pyros if known else type(kind.__name__, (kind, TorchDistributionMixin), {})  # type: ignore[assignment]
    return other


def with_numbers(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution with every tensor in it, those of its parts included, replaced by ``change`` of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Distribution | Transform):
        other = copy.copy(value)
        other.__dict__.update({name: with_numbers(part, change) for name, part in vars(value).items()})
        return other
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(with_numbers(part, change) for part in value)
    return value


def describe(distribution: Distribution, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """What :func:`from_description` builds the distribution from, as JSON, with its numbers put into ``tensors``.

    ``None`` where its class and arguments do not say all of it, as where distributions are transformed or mixed.
    """
    if isinstance(distribution, torch.distributions.Independent):
        base = describe(distribution.base_dist, tensors)
        return base and {"class": "Independent", "base": base, "dimensions": distribution.reinterpreted_batch_ndims}
    kind = getattr(dist, type(distribution).__name__, None)
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        return None
    names = [name for name in inspect.signature(kind).parameters if name in distribution.arg_constraints]
    numbers = {name: getattr(distribution, name) for name in names if name in vars(distribution)}
    own = {name: number[tuple(slice(0, 1) if step == 0 else slice(None) for step in number.stride())]  # repeats are left out
           for name, number in numbers.items()}  # fmt: skip
    described = {"class": kind.__name__, "batch_shape": list(distribution.batch_shape), "arguments": list(own)}
    try:
        again = from_description(described, own)
        value = torch.linspace(-1, 1, distribution.event_shape.numel() or 1).view(distribution.event_shape)
        value = value.to(next(iter(own.values())))
        same = torch.allclose(again.log_prob(value), distribution.log_prob(value), rtol=1e-4)
    except (TypeError, ValueError, RuntimeError, StopIteration, NotImplementedError):
        return None
    if not same or again.shape() != distribution.batch_shape + distribution.event_shape:
        return None
    tensors.update(own)
    return described


def from_description(described: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """The distribution that :func:`describe` described, with its numbers from ``tensors``.

    Raises:
        ValueError: there is no such distribution.
    """
    if described["class"] == "Independent":
        return from_description(described["base"], tensors).to_event(described["dimensions"])
    kind = getattr(dist, str(described["class"]), None)
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        raise ValueError(f"Pyro has no distribution {described['class']}")
    arguments: dict[str, Any] = {name: tensors[name] for name in described["arguments"]}
    return kind(**arguments).expand(described["batch_shape"])
