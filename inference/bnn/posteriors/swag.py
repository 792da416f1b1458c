"""SWAG: the Gaussian of what stochastic gradient descent passes through at a constant step size; K of them are multi-SWAG."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from data.errors import UserError
from data.seeding import mix_seed
from inference.bnn.algorithms import Plan
from inference.bnn.posterior import WeightPosterior
from inference.bnn.training import ORDER, BnnTraining
from models.bayesian.network import BayesianNetwork

MOMENTUM = 0.9
LEAST_VARIANCE = 1e-30  # of weights that nothing moved, as in the authors' code


class SwagCollection(BnnTraining):
    """Stochastic gradient descent from trained weights at a constant step size, and the moments of its iterates.

    After each epoch its weights θ_i go into

        θ̄, the mean;    Σ_diag, the mean square less the square of the mean;    D, the last R deviations θ_i − θ̄_i

    (θ̄_i: the mean as it was then), and q = N(θ̄, ½ (Σ_diag + D Dᵀ/(R − 1))), a low-rank plus diagonal Gaussian. Descent is on
    the objective that the weights were trained by; noise and whatever else is learned beside them stay as they are. How wide q
    is depends on the step size and the batch, not on the data alone.

    Batches are drawn with replacement, as the theory of constant steps has it (Mandt, Hoffman and Blei 2017): passes over
    shuffled data cancel their own noise along the directions in which the loss is flat.

    ``torch.optim.swa_utils.AveragedModel`` and Lightning's ``WeightAveraging`` keep a mean alone, of a copy of the module;
    squares and deviations are needed beside it, so all three are kept here, as buffers that checkpoints hold.

    Source: Maddox et al. 2019, equation 1 and algorithm 1, counting as the authors' code does: the trained weights are not one
    of the iterates. K of them side by side: Wilson and Izmailov 2020.

    Args:
        trained: at a mode of the posterior.

    Attributes:
        mean: θ̄, ``[K, P]``.
        squares: sum of squared deviations from θ̄, ``[K, P]``: differences of large numbers would lose a small variance.
        deviations: D, ``[K, P, R]``; zeros where there are fewer yet.
        seen: how many iterates there were.
    """

    rate_option = "step_size"
    mean: Tensor
    squares: Tensor
    deviations: Tensor
    seen: Tensor

    def __init__(self, trained: BnnTraining) -> None:
        settings = replace(trained.settings, epochs=trained.settings.iterates, beta_warmup=0.0)
        start = trained.objective.guide.loc.detach().clone()
        plan = Plan(len(start), epochs=settings.epochs)
        items, watch = trained.bootstrap_size, trained.watch
        super().__init__(trained.objective, trained.source, plan, start, settings=settings, items_per_epoch=items, watch=watch)
        self.epochs_before = trained.plan.epochs
        self.objective.requires_grad_(False)
        self.objective.guide.requires_grad_(True)
        self.columns = min(settings.rank, settings.iterates)
        for name, shape in (("mean", start.shape), ("squares", start.shape), ("deviations", (*start.shape, self.columns))):
            self.register_buffer(name, start.new_zeros(shape))
        self.register_buffer("seen", start.new_zeros(()))
        self.train()

    def draw_order(self, number: int, k: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, k, epoch, ORDER))
        return torch.randint(len(self.source), (self.steps * self.batch,), generator=generator)

    def on_train_epoch_end(self) -> None:
        self.record(self.objective.guide.loc, self.current_epoch % self.columns)
        super().on_train_epoch_end()

    @torch.no_grad()
    def record(self, weights: Tensor, column: int) -> None:
        """Take in one iterate ``[K, P]``; its deviation goes into this column, in place of the oldest."""
        self.seen += 1
        before = weights - self.mean
        self.mean += before / self.seen
        after = weights - self.mean
        self.squares += before * after
        self.deviations[..., column] = after

    def posterior(self) -> WeightPosterior:
        """q, of the iterates so far."""
        variance = (self.squares / self.seen).clamp_min(LEAST_VARIANCE)
        columns = self.seen.clamp(2, self.columns)
        factor = self.deviations / (2 * (columns - 1)).sqrt()
        return WeightPosterior(self.objective.model, self.mean, 0.5 * (variance / 2).log(), factor=factor)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; the loss is a mean over the K, each of which is to take a step of its own."""
        rate = self.settings.step_size * self.plan.at_once
        return torch.optim.SGD(self.objective.guide.parameters(), rate, momentum=MOMENTUM)


def check_swag(model: BayesianNetwork, rank: int) -> None:
    """Fail where SWAG cannot be had.

    Raises:
        UserError: a ``rank`` of fewer than two columns; batch norm.
    """
    if rank < 2:
        raise UserError(f"`rank={rank}`: swag needs two columns of deviations at least")
    if any(getattr(module, "track_running_stats", False) for module in model.network.modules()):
        raise UserError("swag: batch norm's running statistics would be those of no draw: use GroupNorm")
