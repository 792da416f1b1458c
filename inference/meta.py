"""Meta-training: the objective over batches of tasks, as a Lightning module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.episodes import BatchNumbers, Episode, TaskBatches
from data.errors import UserError
from guides.synthetic import SyntheticGradientGuide
from inference.elbo import RateDistortionModule
from inference.evaluate import evaluate
from inference.seeding import seeded
from models.task_model import EmpiricalBayesModel


@dataclass(frozen=True)
class MetaSchedule:
    """How long and how fast the guide is trained.

    Args:
        tasks: training tasks in all.
        batch: tasks a step.
        learning_rate: outer Adam step size, decayed to zero by a cosine.
        validations: how often validation tasks are scored (an epoch is the time between two).
        validation_tasks: tasks a validation.
    """

    tasks: int
    batch: int = 16
    learning_rate: float = 2e-3
    validations: int = 10
    validation_tasks: int = 300

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return max(1, math.ceil(self.tasks / self.batch / self.validations))


class MetaTraining(lightning.LightningModule):
    """Minimise distortion + β · rate over tasks drawn from the base classes; ``val/loss`` is the same on validation tasks.

    Source: Hu et al. 2019, equation 6; the E-step is the guide's unrolling, the M-step this optimizer.

    Args:
        objective: model, guide and objective.
        train, validation: samplers of feature tasks, such as :class:`~data.episodes.EpisodeSampler`.
        schedule: lengths and rates.
        seed: training and validation tasks, posterior draws.
    """

    def __init__(
        self,
        objective: RateDistortionModule,
        train: Any,
        validation: Any,
        schedule: MetaSchedule,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.objective, self.training_tasks, self.validation = objective, train, validation
        self.schedule, self.seed = schedule, seed

    @property
    def task_model(self) -> EmpiricalBayesModel:
        return self.objective.model

    @property
    def guide(self) -> SyntheticGradientGuide:
        return self.objective.guide

    def train_dataloader(self) -> DataLoader:
        numbers = BatchNumbers(self.schedule.steps, rank=self.global_rank, world_size=self.trainer.world_size)
        batches = TaskBatches(self.training_tasks, self.schedule.batch, seed=self.seed)
        return DataLoader(batches, sampler=numbers, batch_size=None)

    def training_step(self, episode: Episode, index: int) -> Tensor:
        with seeded(self.seed, self.current_epoch, index, self.global_rank, device=self.device):
            terms = self.objective.terms(*episode)
        tasks = len(episode.query_x)
        loss = terms.loss / tasks
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {float(loss)} at step {self.global_step}: training stopped; lower --learning-rate or "
                "--inner-lr (the last good checkpoint is kept)"
            )
        values = {"train/loss": loss, "train/distortion": terms.distortion / tasks, "train/rate": terms.rate / tasks}
        self.log_dict({name: value.detach() for name, value in values.items()}, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        schedule = self.schedule
        scores = evaluate(
            self.task_model,
            self.guide,
            self.validation,
            tasks=schedule.validation_tasks,
            seed=self.seed,
            num_samples=8,
        )[-1]
        rate = scores.rate or 0.0
        values = {"val/loss": scores.distortion + self.objective.elbo.beta * rate, "val/rate": rate}
        values |= {"val/accuracy": scores.accuracy, "val/nll": scores.nll}
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.schedule.learning_rate)
        total = self.schedule.steps * self.schedule.validations
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
