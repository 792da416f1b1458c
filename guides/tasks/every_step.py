"""One unrolling, read after every step: the plate of an objective that covers all of them."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from models.sites import Site, says_its_sites

STEPS_DIM = -3  # left of the plates of tasks and queries


class EveryStep(nn.Module):
    """A model, or a guide that is read at every step, whose sites in the plate ``tasks`` stand in a plate ``steps`` too, each
    step with a weight of its own.

    An ELBO of such a pair is Σ_k weight_k · ELBO(θᵏ), from one unrolling: readings share it as vectorised particles share a
    program. Sites outside the plate ``tasks``, such as hyperparameters, are drawn once and count once.

    Args:
        program: the model, or :meth:`guides.tasks.unrolled.UnrolledGuide.at_every_step`.
        weights: ``[steps + 1]``, positive, summing to 1; see :func:`step_weights`.
    """

    weights: Tensor
    program: Any

    def __init__(self, program: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("weights", weights, persistent=False)

    @property
    def capturable(self) -> bool:
        """Whether the program is, by :class:`~inference.runs.graphs.CapturedTerms`."""
        return getattr(self.program, "capturable", False)

    def forward(self, *args, **kwargs):
        with StepsPlate(self.weights):
            return self.program(*args, **kwargs)

    def says_sites(self, *args, **kwargs) -> bool:
        """Whether the program does."""
        return says_its_sites(self.program, *args, **kwargs)

    def sites(self, *args, **kwargs) -> dict[str, Site]:
        """What a call samples, by name. Every site is in the plate ``tasks``."""
        scale = self.weights[:, None, None]
        return {name: site._replace(scale=scale) for name, site in self.program.sites(*args, **kwargs).items()}


class StepsPlate(PlateMessenger):
    """The plate ``steps`` around sites of the plate ``tasks`` alone.

    Args:
        weights: ``[steps + 1]``; they scale the sites as a plate's subsampling does.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__("steps", len(weights), dim=STEPS_DIM)
        self.weights = weights[:, None, None]

    def _process_message(self, msg: Message) -> None:
        if any(frame.name == "tasks" for frame in msg["cond_indep_stack"]):
            super()._process_message(msg)
            msg["scale"] = msg["scale"] * self.weights


def step_weights(steps: int, earlier: float) -> Tensor:
    """Weights ``[steps + 1]`` of θ⁰ … θᴷ: 1 for the last and ``earlier`` for each before it, divided by their sum."""
    weights = torch.full((steps + 1,), earlier)
    weights[-1] = 1.0
    return weights / weights.sum()
