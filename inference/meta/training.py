"""Meta-training: the objective over batches of tasks, as a Lightning module."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.seeding import mix_seed, seeded
from guides.tasks.every_step import EveryStep, step_weights
from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import evaluate, readings
from inference.evaluation.predictive import place_of
from inference.meta.settings import MetaSchedule
from inference.runs.processes import our_part
from models.parameters import logarithms

TASKS, DRAWS = 0, 1  # streams of random numbers: tasks and posterior draws must never share one


def objective_weights(objective: RateDistortionModule, earlier: float) -> Tensor | None:
    """Weights of θ⁰ … θᴷ in the loss of a guide that takes steps, of the objective's device and type; ``None`` where the loss
    is of θᴷ alone.

    Args:
        earlier: weight of each step before the last, whose weight is 1.
    """
    guide = objective.guide
    if not earlier or not getattr(guide, "steps", 0) or not hasattr(guide, "at_every_step"):
        return None
    device, dtype = place_of(objective)
    return step_weights(guide.steps, earlier).to(device, dtype)


def every_step(objective: RateDistortionModule, weights: Tensor | None) -> RateDistortionModule:
    """The objective after every step of a guide, as a weighted mean, from one unrolling; without weights the objective itself.

    Args:
        weights: of :func:`objective_weights`.
    """
    if weights is None:
        return objective
    guide = objective.guide
    return RateDistortionModule(EveryStep(objective.model, weights), EveryStep(guide.at_every_step(), weights), objective.elbo)


class MetaTraining(lightning.LightningModule):
    """Minimise distortion + β · rate over tasks drawn from the base classes, after every step of the guide, so that it can be
    read after any of them; ``val/loss`` is the same on validation tasks.

    Source: Hu et al. 2019, equation 6; the E-step is the guide's unrolling, the M-step this optimizer.

    Args:
        objective: model, guide and objective.
        train, validation: samplers of feature tasks, such as :class:`~data.episodes.EpisodeSampler`.
        schedule: lengths, rates and the seed.
    """

    weights: Tensor | None

    def __init__(
        self,
        objective: RateDistortionModule,
        train: Any,
        validation: Any,
        schedule: MetaSchedule,
    ) -> None:
        super().__init__()
        self.objective, self.training_tasks, self.validation = objective, train, validation
        self.schedule = schedule
        # on the device once and for all: a step that made them there would wait for the copy
        self.register_buffer("weights", objective_weights(objective, schedule.earlier), persistent=False)

    def train_dataloader(self) -> DataLoader:
        """Batch numbers alone: tasks are drawn in :meth:`training_step`, where a resumed run knows its epoch for certain."""
        return DataLoader(torch.arange(self.schedule.steps), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, number: int, index: int) -> Tensor:
        """The loss of a batch of tasks, nats per task, of which this process has its part."""
        batch, seeds = self.schedule.batch, (self.schedule.seed, self.current_epoch, index, 0)
        device, dtype = place_of(self.objective)
        episode = self.training_tasks.sample(batch, seed=mix_seed(*seeds, TASKS))
        with seeded(*seeds, DRAWS, device=self.device), our_part(self, batch) as part:
            objective = every_step(self.objective, self.weights)
            terms = objective.terms(*episode.tasks(part.rows).to(device, dtype=dtype))
            share = batch / self.trainer.world_size  # of each process; their mean is the batch's loss
            tasks = getattr(self.objective.model, "num_tasks", None) or share  # what the terms are sums over
            loss = terms.loss / tasks
        values = {"train/loss": loss, "train/distortion": terms.distortion / tasks, "train/rate": terms.rate / tasks}
        logged = {name: value.detach() for name, value in values.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        schedule, model = self.schedule, self.objective.model
        guides = readings(self.objective.guide) if schedule.earlier else {0: self.objective.guide}
        tasks, seed = schedule.validation_tasks, schedule.seed
        scores = [evaluate(model, g, self.validation, tasks=tasks, seed=seed, num_samples=8) for g in guides.values()]
        losses = torch.tensor([score.distortion + self.objective.elbo.beta * (score.rate or 0.0) for score in scores])
        last = scores[-1]
        values = {"val/loss": float(losses @ step_weights(len(losses) - 1, schedule.earlier)), "val/rate": last.rate or 0.0}
        values |= {"val/distortion": last.distortion, "val/accuracy": last.accuracy, "val/nll": last.nll}
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        quick = {id(parameter) for parameter in logarithms(self)}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups[id(parameter) in quick].append(parameter)
        rate, speed = self.schedule.learning_rate, self.schedule.scale_speed
        rates = ({"params": part, "lr": rate * speed if fast else rate} for fast, part in groups.items() if part)
        optimizer = torch.optim.Adam(rates)
        total = self.schedule.steps * self.schedule.validations
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
