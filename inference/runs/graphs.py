"""Training steps on a GPU without the host's share: what a step computes is captured once for each shape, and replayed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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

    A graph is of parameters where they lie, and of what else the objective was when it was captured: :meth:`forget` it where
    that becomes another. It writes gradients to the same place each time, so they must not be added up over several steps, see
    :func:`alone`.
    """

    def __init__(self) -> None:
        self.captured: dict[Hashable, Terms] = {}
        self.failed = False
        self.pool: Any = None

    def forget(self) -> None:
        """Capture anew from now on."""
        self.captured.clear()

    def __call__(self, objective: RateDistortionModule, *args: Any) -> RateDistortion:
        """Distortion and rate of a batch, site by site, nats."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        if self.failed or not (getattr(objective.guide, "capturable", False) and on_gpu(tensors) and torch.is_grad_enabled()):
            return objective.terms(*args)
        places = (parameter.data_ptr() for parameter in objective.parameters() if parameter.requires_grad)
        key = (objective.training, *map(described, args), *places)
        if key not in self.captured:
            self.capture(key, objective, args)
        return objective.terms(*args) if self.failed else self.captured[key].read(tensors)

    def capture(self, key: Hashable, objective: RateDistortionModule, args: tuple) -> None:
        """Capture the terms for arguments such as ``args``, under a ``key``; or note that it failed."""
        terms, tensors = Terms(objective, args), [value for value in args if isinstance(value, Tensor)]
        given = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        device = given[0].device
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        mean_the_stream()
        try:
            with torch.random.fork_rng(devices=[device], device_type="cuda"):  # a rehearsal draws, too
                torch.cuda.make_graphed_callables(terms, given, allow_unused_input=True, pool=self.pool)
        except RuntimeError:
            self.failed = True
            self.captured.clear()
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


def mean_the_stream() -> None:
    """Tell torch that gradients are meant to be added up on the stream of a capture; newer ones warn of it."""
    tell = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if tell is not None:
        tell(False)


def described(value: Any) -> Hashable:
    """What a graph depends on of an argument."""
    return (value.shape, value.dtype, value.requires_grad) if isinstance(value, Tensor) else value


def on_gpu(tensors: Sequence[Tensor]) -> bool:
    """Whether there are any ``tensors``, and all lie there."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


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
