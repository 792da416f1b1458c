"""Training of the posteriors over a network's weights, as one Lightning module for all algorithms."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.episodes import rows_of
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from guides.mean_field import MeanFieldGuide
from inference.bnn.algorithms import FitSettings, Plan, Position
from inference.bnn.posterior import WeightPosterior
from inference.elbo import RateDistortionModule
from inference.runs.graphs import CapturedTerms, alone
from inference.runs.means import StepMeans
from inference.runs.processes import our_part
from inference.runs.tensors import near
from models.bayesian.weight_priors import MixtureWeightPrior
from models.bayesian.weight_scales import fan_in
from models.parameters import fusable

WATCH_DRAWS = 16
STILL, NEAR_REACH = 0.05, 0.9  # a log standard deviation has hardly moved; it has used up this share of what Adam allows
WORTH_SAYING = 0.01  # share of the weights
BOOTSTRAP, ORDER, DRAWS = 0, 1, 2  # streams of random numbers


class BnnTraining(lightning.LightningModule):
    """θ_k ← argmin distortion(B_k) + β KL(q_k ‖ m) for the posteriors of a :class:`~inference.bnn.algorithms.Plan`.

    With a :class:`~models.bayesian.weight_priors.MixtureWeightPrior` the prior's components are Θ, the posteriors so far: they
    are refreshed when a posterior has finished its round, and each round starts from them. Before the first of them is finished
    the prior is a Gaussian, whose scales may be learned; the components start there. The bootstrap samples B_k are drawn anew
    each round; without a mixture every posterior sees all data, in an order of its own.

    Weights and standard deviations are trained in units of the weights' scales. In these Adam brings standard deviations from
    their start to their optimum in a few epochs; :meth:`scale_warning` says where it has not.

    Source: slide "β-BNN".

    Numbers that the likelihood learns (a noise) are one per posterior, and go with it.

    Args:
        objective: model (``posteriors`` = those at once), guide, objective.
        data: training items.
        plan: order of training.
        start: ``[K, P]`` initial means.
        settings: initial scale, batch, learning rates, seed.
        items_per_epoch: n_b, or n without a mixture.
        watch: test items on which ``test/accuracy`` and ``test/nll`` are logged along the way; they decide nothing.

    Attributes:
        epochs_before: that the posteriors have trained elsewhere, for the logs.
        rate_option: which option is its step size.
    """

    rates: Tensor
    start: Tensor
    epochs_before = 0
    rate_option = "learning_rate"

    def __init__(
        self,
        objective: RateDistortionModule,
        data: LabelledItems,
        plan: Plan,
        start: Tensor,
        *,
        settings: FitSettings,
        items_per_epoch: int,
        watch: LabelledItems | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.source, self.plan, self.watch = objective, data, plan, watch
        self.settings, self.bootstrap_size = settings, items_per_epoch
        self.items, self.captured, self.means = data.items, CapturedTerms(), StepMeans()
        self.batch, self.seed = min(settings.batch, items_per_epoch), settings.seed
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("rates", torch.zeros(plan.posteriors))
        own = objective.model.likelihood
        every = own.copies(plan.posteriors)  # another module only where posteriors train one after another
        self.likelihoods = None if every is own else every.requires_grad_(False)
        self.to(start.dtype)  # the network's, where that is not the default: of all parts, and Lightning's word for it

    @property
    def mixture(self) -> MixtureWeightPrior | None:
        """The prior, where it is a mixture of posteriors."""
        prior = self.objective.model.prior
        return prior if isinstance(prior, MixtureWeightPrior) else None

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return max(1, self.bootstrap_size // self.batch)

    def train_dataloader(self) -> DataLoader:
        """Batch numbers alone: items are taken in :meth:`training_step`, where a resumed run knows its epoch for certain."""
        return DataLoader(torch.arange(self.steps), batch_size=None)  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        self.items = near(self.source, self.device).items

    def on_fit_end(self) -> None:
        self.items = self.source.items
        self.captured.forget()

    def on_train_epoch_start(self) -> None:
        place = self.plan.position(self.current_epoch)
        if self.mixture is not None:  # the first segment has no posteriors to mix: it learns the prior that they start from
            self.mixture.begun = self.current_epoch >= self.plan.epochs_per_round
            for scales in self.mixture.parameters():
                scales.requires_grad_(not self.mixture.begun)
        if place.epoch == 0:
            self.captured.forget()
            self.start_segment(place.round, place.rows)
        self.order = self.draw_orders(place)

    def start_segment(self, number: int, rows: slice) -> None:
        """Start the segment of this ``number``: put the posteriors ``rows`` of Θ into the guide, with their likelihood's
        numbers; Adam starts anew."""
        guide = self.objective.guide
        with torch.no_grad():
            if number and self.mixture is not None:
                guide.place(self.mixture.loc[rows], self.mixture.log_scale[rows])
            elif isinstance(guide, MeanFieldGuide):
                guide.restart(self.start[rows], self.settings.initial_scale)
            else:
                guide.place(self.start[rows])
            for own, every in self.learned_numbers():
                own.copy_(every[rows].reshape(own.shape))
        self.trainer.optimizers[0].state.clear()

    def learned_numbers(self) -> list[tuple[Tensor, Tensor]]:
        """The likelihood's parameters in training, each beside those of all K posteriors, where that is not the same."""
        if self.likelihoods is None:
            return []
        return list(zip(self.objective.model.likelihood.parameters(), self.likelihoods.parameters(), strict=True))

    def draw_orders(self, place: Position) -> Tensor:
        """:meth:`draw_order` of the posteriors that train now: ``[posteriors at once, items]``."""
        members = range(*place.rows.indices(self.plan.posteriors))
        return torch.stack([self.draw_order(place.round, k, place.epoch) for k in members])

    def draw_order(self, number: int, k: int, epoch: int) -> Tensor:
        """Indices of posterior ``k``'s items in this epoch of segment ``number``: its bootstrap sample, shuffled."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, number, k, BOOTSTRAP))
        n = len(self.source)
        sample = torch.arange(n)
        if self.mixture is not None:
            sample = torch.randint(n, (self.bootstrap_size,), generator=generator)
        generator.manual_seed(mix_seed(self.seed, number, k, epoch, ORDER))
        return sample[torch.randperm(len(sample), generator=generator)]

    def training_step(self, number: int, index: int) -> Tensor:
        """The loss of a batch, nats per item, under every posterior trained side by side; this process has a part of it."""
        with (
            seeded(self.seed, self.current_epoch, index, 0, DRAWS, device=self.device),
            our_part(self, self.batch) as part,
        ):
            chosen = part.of(self.order[:, index * self.batch : (index + 1) * self.batch], 1)
            chosen = chosen.squeeze(0) if self.plan.at_once == 1 else chosen
            x, y = (rows_of(source, chosen).to(self.device, non_blocking=True) for source in (self.items, self.source.labels))
            x, y = (t.to(self.dtype) if t.is_floating_point() else t for t in (x, y))
            epoch = self.current_epoch + index / self.steps
            beta = self.objective.elbo.beta * self.plan.warmed(epoch, self.settings.beta_warmup)
            here = alone(self)
            terms = self.captured(self.objective, x, y, beta=beta) if here else self.objective.terms(x, y)
        per_item = 1 / (self.bootstrap_size * self.plan.at_once)
        self.means.add({"train/distortion": terms.distortion * per_item, "train/rate": terms.rate / self.plan.at_once})
        loss = part.weight * terms.distortion  # all processes have the whole rate
        return (loss + beta * terms.rate if beta else loss) * per_item

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        place = self.plan.position(self.current_epoch)
        guide, model = self.objective.guide, self.objective.model
        if isinstance(guide, MeanFieldGuide) and self.plan.ends_segment(self.current_epoch):
            self.rates[place.rows] = WeightPosterior(model, guide.loc, guide.log_scale, factor=guide.factor).rate()
            if self.mixture is not None:
                if not self.mixture.begun:
                    self.mixture.begin()
                self.mixture.refresh(place.rows, guide.loc, guide.log_scale)
            for own, every in self.learned_numbers():
                every[place.rows] = own
        last_row = place.rows.stop == self.plan.posteriors
        if self.watch is not None and last_row and (place.epoch + 1) % self.plan.sparse == 0:
            scores = self.posterior().scores(self.watch, num_samples=WATCH_DRAWS)
            epoch = self.epochs_before + place.round * self.plan.epochs_per_round + place.epoch + 1
            logged = {f"test/{name}": scores[name] for name in ("accuracy", "nll") if name in scores}
            self.log_dict(logged | {"own_epoch": float(epoch)}, sync_dist=True)

    def posterior(self) -> WeightPosterior:
        """The posteriors as they are: those in training, and Θ for the others."""
        guide = self.objective.guide
        if self.mixture is None or self.plan.at_once == self.plan.posteriors:
            parts = (guide.log_scale, guide.factor) if isinstance(guide, MeanFieldGuide) else (None, None)
            log_scale, factor = (None if part is None else part.detach() for part in parts)
            return WeightPosterior(self.objective.model, guide.loc.detach(), log_scale, factor=factor)
        every, model = self.mixture, self.objective.model
        return WeightPosterior(model, every.loc, every.log_scale, own_likelihood=self.likelihoods)

    def scale_warning(self) -> str | None:
        """One line where standard deviations did not reach their optimum: they are where they began, or where Adam's learning
        rate let them go and no further. Of those in training at the end."""
        guide = self.objective.guide
        if not isinstance(guide, MeanFieldGuide) or guide.factor is not None:
            return None
        moved = (guide.standard_log_scale.detach() - math.log(self.settings.initial_scale)).abs()
        reach = 0.5 * self.plan.epochs * self.steps * self.settings.scale_speed * self.settings.learning_rate
        if float((moved < STILL).float().mean()) > 0.5:
            return "most standard deviations have hardly moved from `initial_scale`: more `epochs`, or a higher `scale_speed`"
        if float((moved > NEAR_REACH * reach).float().mean()) > WORTH_SAYING:
            return (
                f"standard deviations went as far as Adam lets them, a factor of {math.exp(reach):.2g}: more `epochs`, or a "
                "higher `scale_speed`"
            )
        return None

    def configure_optimizers(self):
        """Adam with one group per speed, and a cosine from the learning rate to zero over each posterior's epochs."""
        fused = fusable(self.parameters())
        speeds = {"guide.standard_log_scale": self.settings.scale_speed, "scales.log_scale": self.settings.prior_speed}
        network = self.objective.model.__dict__["_modules"]["network"]
        fans = fan_in({name: p.shape for name, p in network.named_parameters()})  # units of weights that are not random
        speeds |= {f"model.network.{name}": fan**-0.5 for name, fan in fans.items()}
        groups: list[dict[str, Any]] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                speed = next((speed for end, speed in speeds.items() if name.endswith(end)), 1.0)
                groups.append({"params": [parameter], "lr": speed * self.settings.learning_rate})
        # the loss is per item, so that gradients of a rate near its optimum are tiny: `eps` must be small beside them
        optimizer = torch.optim.Adam(groups, self.settings.learning_rate, eps=1e-12, fused=fused)

        def cosine(step: int) -> float:
            epoch = min(step / self.steps, self.plan.total_epochs - 1e-6)
            return 0.5 * (1 + math.cos(math.pi * self.plan.progress(epoch)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
