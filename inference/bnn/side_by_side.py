"""Many data sets of one network, and a posterior of each: fitted side by side, by one training."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from inference.bnn.algorithms import Plan, Position
from inference.bnn.fitting import Recipe, build_objective
from inference.bnn.posterior import WeightPosterior
from inference.bnn.training import ORDER, BnnTraining
from inference.runs.folder import RunFolder
from inference.runs.training import Loop, train


class SideBySide(BnnTraining):
    """The training of :class:`~inference.bnn.training.BnnTraining`, where each posterior has a data set of its own.

    ``data`` holds these one after another, ``items_per_epoch`` items each.
    """

    def draw_orders(self, place: Position) -> Tensor:
        """Indices of each posterior's items in this epoch, all of its own, shuffled: ``[K, n]``."""
        n = self.bootstrap_size
        generator = torch.Generator().manual_seed(mix_seed(self.seed, place.round, place.epoch, ORDER))
        shuffled = torch.rand(self.plan.posteriors, n, generator=generator).argsort(-1)
        return shuffled + n * torch.arange(self.plan.posteriors)[:, None]


def fit_side_by_side(network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, *, loop: Loop) -> WeightPosterior:
    """A posterior of each data set, as the recipe's algorithm fits it; component k is of data set k.

    The posteriors are independent: each learns prior scales and noise of its own, where the recipe learns them.

    Args:
        network: untrained.
        x: inputs of all data sets, ``[n, *item]``.
        y: targets, ``[data sets, n]``.
        recipe: of an algorithm without a mixture, whose weights are all random; its ``posteriors`` are not read.
        loop: how the training runs.
    """
    settings, plan = recipe.settings, Plan(len(y), epochs=recipe.settings.epochs)
    with seeded(mix_seed(settings.seed)):
        objective, start = build_objective(network, recipe, plan, num_data=len(x))
    data = LabelledItems(x.repeat(len(y), *(1 for _ in x.shape[1:])), y.flatten(), ())
    module = SideBySide(objective, data, plan, start, settings=settings, items_per_epoch=len(x)).train()
    with tempfile.TemporaryDirectory() as scratch, seeded(settings.seed):
        run = RunFolder.create(Path(scratch) / "run", "simulations", "")
        train(module, loop, run, "simulations", epochs=plan.total_epochs, every=plan.total_epochs)
    return module.eval().posterior()
