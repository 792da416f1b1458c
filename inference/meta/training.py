"""Meta-training: the objective over batches of tasks, as a Lightning module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.seeding import mix_seed, seeded
from guides.tasks.unrolled import SyntheticGradientGuide
from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import evaluate
from inference.runs.training import stop_if_not_finite
from models.tasks.model import EmpiricalBayesModel

TASKS, DRAWS = 0, 1  # streams of random numbers: tasks and posterior draws must never share one


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
        """Batch numbers alone: tasks are drawn in :meth:`training_step`, where a resumed run knows its epoch for certain."""
        return DataLoader(torch.arange(self.schedule.steps), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, number: int, index: int) -> Tensor:
        seeds = (self.seed, self.current_epoch, index, self.global_rank)
        episode = self.training_tasks.sample(self.schedule.batch, seed=mix_seed(*seeds, TASKS)).to(self.device)
        with seeded(*seeds, DRAWS, device=self.device), stop_if_not_finite(self.global_step):
            terms = self.objective.terms(*episode)
            tasks = self.schedule.batch
            loss = terms.loss / tasks
            if not torch.isfinite(loss):
                raise FloatingPointError
        values = {"train/loss": loss, "train/distortion": terms.distortion / tasks, "train/rate": terms.rate / tasks}
        self.log_dict({name: value.detach() for name, value in values.items()}, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_train_epoch_end(self) -> None:
        schedule = self.schedule
        tasks, seed = schedule.validation_tasks, self.seed
        with stop_if_not_finite(self.global_step):
            scores = evaluate(self.task_model, self.guide, self.validation, tasks=tasks, seed=seed, num_samples=8)[-1]
        rate = scores.rate or 0.0
        values = {"val/loss": scores.distortion + self.objective.elbo.beta * rate, "val/rate": rate}
        values |= {"val/accuracy": scores.accuracy, "val/nll": scores.nll}
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.schedule.learning_rate)
        total = self.schedule.steps * self.schedule.validations
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
