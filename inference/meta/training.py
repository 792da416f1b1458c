"""Meta-training: the objective over batches of tasks, as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.seeding import mix_seed, seeded
from guides.tasks.every_step import EveryStep, step_weights
from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import TASKS_AT_ONCE, WHOLE, evaluate_readings, readings
from inference.evaluation.metrics import Scores
from inference.evaluation.predictive import place_of
from inference.meta.settings import MetaSchedule
from inference.meta.tasks import Kinds
from inference.runs.graphs import CapturedTerms, alone
from inference.runs.means import StepMeans
from inference.runs.processes import our_part
from models.networks.feature_space import FeatureSpace
from models.networks.layers import embed
from models.parameters import fusable, logarithms

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


def relative(sampler: Any, way: int | None, queries: int) -> float:
    """What guessing costs in the usual tasks of a ``sampler``, in units of what it costs in tasks of ``way`` classes with
    ``queries`` in all: tasks of all shapes count alike where their losses are multiplied by it. 1 where there is no shape."""
    usual = getattr(sampler, "spec", None)
    return usual.guess / (queries * math.log(way)) if usual is not None and way and way > 1 else 1.0


class MetaTraining(lightning.LightningModule):
    """Minimise distortion + β · rate over tasks drawn from the base classes, after every step of the guide, so that it can be
    read after any of them; ``val/loss`` is the same on validation tasks, whose rate is that of their own sites. The rate of
    what all tasks share, such as random weights or hyperparameters, is what the training tasks pay for it, once for all of
    them: ``train/loss`` has a part of it. On tasks that it has not seen distortion itself tells how well it generalises, and
    checkpoints are chosen without that rate.

    Source: Hu et al. 2019, equation 6; the E-step is the guide's unrolling, the M-step this optimizer.

    Where features are mapped by an ``embedding`` with parameters, these are trained by the same objective.

    Args:
        objective: model, guide and objective.
        train: a sampler of tasks to train on, such as :class:`~data.episodes.EpisodeSampler`, of what the embedding takes.
        validation: of one or several kinds of tasks, all of the same items.
        schedule: lengths, rates and the seed.
        embedding: what items go through before model and guide see them; ``None`` where they are mapped already.
    """

    weights: Tensor | None

    def __init__(
        self,
        objective: RateDistortionModule,
        train: Any,
        validation: Any,
        schedule: MetaSchedule,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.training_tasks, self.embedding = objective, train, embedding
        self.validation = validation if isinstance(validation, tuple) else (validation,)
        self.schedule, self.captured, self.means = schedule, CapturedTerms(), StepMeans()
        # on the device once and for all: a step that made them there would wait for the copy
        self.register_buffer("weights", objective_weights(objective, schedule.earlier), persistent=False)

    def train_dataloader(self) -> DataLoader:
        """Batch numbers alone: tasks are drawn in :meth:`training_step`, where a resumed run knows its epoch for certain."""
        return DataLoader(torch.arange(self.schedule.steps), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, number: int, index: int) -> Tensor:
        """The loss of a batch of tasks, nats per task, of which this process has its part."""
        batch, seeds = self.schedule.batch, (self.schedule.seed, self.current_epoch, index, 0)
        episode = self.draw(batch, mix_seed(*seeds, TASKS))
        with seeded(*seeds, DRAWS, device=self.device), our_part(self, batch) as part:
            objective = every_step(self.objective, self.weights)
            tasks_here = self.embedded(episode.tasks(part.rows))
            with torch.autocast(self.device.type, enabled=False):  # a network may run in bf16, the objective may not
                terms = self.captured(objective, *tasks_here) if alone(self) else objective.terms(*tasks_here)
            share = batch / self.trainer.world_size  # of each process; their mean is the batch's loss
            tasks = getattr(self.objective.model, "num_tasks", None) or share  # what the terms are sums over
            loss = terms.loss / tasks * relative(self.training_tasks, episode.way, episode.query_x.shape[1])
        said = {"train/loss": loss, "train/distortion": terms.distortion / tasks, "train/rate": terms.rate / tasks}
        self.means.add(said)
        return loss

    def on_fit_end(self) -> None:
        self.captured.forget()  # and its memory on the GPU

    def draw(self, tasks: int, seed: int) -> Any:
        """A batch of so many training ``tasks``."""
        return self.training_tasks.sample(tasks, seed=seed)

    def embedded(self, episode: Any) -> Any:
        """The tasks of an ``episode`` where the module is, their items as model and guide see them: support and queries go
        through the embedding in one pass."""
        device, dtype = place_of(self.objective)
        episode = episode.to(device, dtype=dtype)
        if self.embedding is None:
            return episode
        both = self.embedding(torch.cat([episode.support_x, episode.query_x], dim=1))
        support, query = both.split([episode.support_x.shape[1], episode.query_x.shape[1]], dim=1)
        return episode._replace(support_x=support, query_x=query)

    def validation_kinds(self) -> Kinds:
        """The validation tasks in the present feature space."""
        if self.embedding is None:
            return self.validation
        bank = embed(self.embedding, self.validation[0].items)
        return tuple(sampler.on(bank) for sampler in self.validation)

    def on_train_epoch_end(self) -> None:
        """Validate: each process has its part of the tasks, and what is logged is the mean over all of them."""
        self.log_dict(self.validate(self.global_rank, self.trainer.world_size), prog_bar=True, sync_dist=True)

    def validate(self, rank: int = 0, world: int = 1) -> dict[str, float]:
        """What validation tasks say of the module as it is; of process ``rank`` of ``world`` its part, whose mean is that."""
        schedule, model, kinds = self.schedule, self.objective.model, self.validation_kinds()
        guides = readings(self.objective.guide) if schedule.earlier else {0: self.objective.guide}
        found: dict[str, list[float]] = {}
        for sampler in kinds:
            tasks = max(1, schedule.validation_tasks // len(kinds))
            settings: dict[str, Any] = {"tasks": tasks, "seed": schedule.seed, "num_samples": 8}
            shared = 1 < world <= min(tasks, TASKS_AT_ONCE)  # then each process has one at least
            settings["share"] = (rank, world) if shared else WHOLE
            scores = list(evaluate_readings(model, guides, sampler, **settings).values())
            spec = getattr(sampler, "spec", None)
            share = relative(self.training_tasks, spec.way, spec.way * spec.queries) if spec else 1.0
            weight = scores[0].episodes * world / tasks if shared else 1.0  # the mean over processes is that over tasks
            for name, value in self.validated(scores, share).items():
                found.setdefault(name, []).append(weight * value)
        return {name: fmean(values) for name, values in found.items()}

    def validated(self, scores: Sequence[Scores], share: float) -> dict[str, float]:
        """What is logged of one kind of tasks, from the ``scores`` after every step; the loss is multiplied by ``share``.
        ``val/rate`` is of each task's own sites, 0 where it has none."""
        losses = torch.tensor([score.distortion + self.objective.elbo.beta * (score.rate or 0.0) for score in scores])
        last = scores[-1]
        values = {
            "val/loss": share * float(losses @ step_weights(len(losses) - 1, self.schedule.earlier)),
            "val/rate": last.rate or 0.0,
        }
        return values | {"val/distortion": last.distortion, "val/accuracy": last.accuracy, "val/nll": last.nll}

    def feature_groups(self) -> list[dict[str, Any]]:
        """The parameters of the map of features, for the optimizer. Their weight decay is the gradient of ½ γ ‖Δ‖²: a Gaussian
        prior on the map's change, of precision γ per training task."""
        space = self.embedding if isinstance(self.embedding, FeatureSpace) else getattr(self.embedding, "space", None)
        if space is None:
            return []
        rate, decay = self.schedule.feature_learning_rate, self.schedule.feature_decay
        return [{"params": list(space.parameters()), "lr": rate, "weight_decay": decay}]

    def configure_optimizers(self):
        quick = {id(parameter) for parameter in logarithms(self.objective)}
        groups: dict[float, list[nn.Parameter]] = {}
        rate, speed = self.schedule.learning_rate, self.schedule.scale_speed
        for parameter in self.objective.parameters():
            groups.setdefault(rate * speed if id(parameter) in quick else rate, []).append(parameter)
        both = [{"params": part, "lr": lr} for lr, part in groups.items()] + self.feature_groups()
        for group in both:
            group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
        optimizer = torch.optim.Adam([group for group in both if group["params"]], fused=fusable(self.parameters()))
        together = getattr(self._trainer, "accumulate_grad_batches", 1)
        total = -(-self.schedule.steps // together) * self.schedule.validations
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
