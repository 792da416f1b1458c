"""Options of ``python -m inference.svi_bnn``, the four algorithms, and the order in which they train."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from data.errors import UserError
from inference.runs.options import RunOptions
from inference.runs.values import (
    Choices,
    OpenUnitInterval,
    PositiveInt,
    PositiveNumber,
    Sweep,
    TwoOrMore,
    Widths,
    register_names,
)
from models.bayesian.weight_priors import PriorName
from models.likelihoods import LikelihoodName


class Algorithm(StrEnum):
    """How the prior m of the rate KL(q ‖ m) is had.

    Source: "On regularizing deep learning using mutual information", slide "β-BNN".
    """

    VANILLA = "vanilla"
    """The prior of ``--prior`` and β = 1: Bayes by backprop."""
    FIXED = "fixed-prior"
    """m = N(0, I), β chosen on validation data."""
    BETA_BNN = "beta-bnn"
    """m = the mixture of K posteriors of bootstrap samples, refreshed once a round."""
    ONLINE = "online"
    """The same mixture, refreshed after each posterior."""
    DETERMINISTIC = "deterministic"
    """Maximum likelihood, one network: what a posterior is compared with."""

    @property
    def is_mixture(self) -> bool:
        return self in (Algorithm.BETA_BNN, Algorithm.ONLINE)

    def betas(self, sweep: tuple[float, ...]) -> tuple[float, ...]:
        """The β it is run with: those of the ``sweep``, unless the algorithm fixes its own."""
        return {Algorithm.VANILLA: (1.0,), Algorithm.DETERMINISTIC: (0.0,)}.get(self, sweep)


class Algorithms(Choices[Algorithm]):
    """Algorithms, in the order they are run."""

    known = Algorithm


register_names(PriorName)
register_names(LikelihoodName)


@dataclass(frozen=True, kw_only=True)
class BnnOptions(RunOptions):
    """Everything that defines a run.

    Args:
        data: data set: glyphs, mnist, fashion-mnist, cifar10, cifar100, folder (images), curve (regression).
        root: folder or zip archive of the images.
        image_size: height and width in pixels; the data set's own when not given.
        train_size: training items to use, chosen by the seed; all when not given.
        network: mlp, lenet or a torchvision.models name.
        hidden: widths of mlp, separated by commas.
        likelihood: categorical, gaussian, bernoulli or poisson; chosen by the targets when not given.
        algorithms: separated by commas: vanilla, fixed-prior, beta-bnn, online, deterministic.
        beta: weight of the rate; several, separated by commas, are a sweep of which validation data choose one per algorithm.
        validation: fraction of the training data that chooses β; the chosen one is trained again on all.
        prior: of vanilla: gaussian, laplace, scale-mixture or spike-and-slab.
        prior_scale: its scale.
        posteriors: K, components of the mixture.
        bootstrap_size: n_b, items of a bootstrap sample; as many as there are training items when not given.
        rounds: T, how often the mixture is refreshed (once for each posterior in online).
        epochs: passes of each posterior over its data, in all rounds together.
        batch: items per step, over all processes, for each posterior.
        learning_rate: of Adam, decayed to zero by a cosine.
        initial_scale: initial standard deviation of the weights; small, so that the means are found before the noise grows.
        scale_speed: learning rate of log standard deviations relative to that of the means. Adam moves a number by at most its
            learning rate per step, so with 1 a short training stops well before they reach their optimum.
        samples: draws of the posterior predictive.
        seed: of everything random.
        device: auto, cpu or cuda.
        devices: processes to train with; they share each batch.
        precision: Lightning's, such as 32-true or bf16-mixed.
        out: run folder; runs/svi_bnn-<time> when not given.
        progress: progress bars.
    """

    train_size: TwoOrMore | None = None
    network: str = "mlp"
    hidden: Widths = Widths((100,))
    likelihood: LikelihoodName | None = None
    algorithms: Algorithms = Algorithms(
        (Algorithm.DETERMINISTIC, Algorithm.VANILLA, Algorithm.FIXED, Algorithm.BETA_BNN, Algorithm.ONLINE)
    )
    beta: Sweep = Sweep((0.01, 0.1))
    validation: OpenUnitInterval = 0.2
    prior: PriorName = PriorName.GAUSSIAN
    prior_scale: PositiveNumber = 1.0
    posteriors: PositiveInt = 4
    bootstrap_size: PositiveInt | None = None
    rounds: PositiveInt = 3
    epochs: PositiveInt = 12
    batch: PositiveInt = 100
    learning_rate: PositiveNumber = 2e-3
    initial_scale: PositiveNumber = 0.02
    scale_speed: PositiveNumber = 10.0
    samples: PositiveInt = 40

    def check(self) -> None:
        super().check()
        if self.epochs % self.rounds:
            raise UserError(f"`epochs={self.epochs}` must be a multiple of `rounds={self.rounds}`")

    @property
    def betas(self) -> tuple[float, ...]:
        """The sweep's β, ascending."""
        return self.beta

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return self.hidden

    def plan(self, algorithm: Algorithm) -> Plan:
        """The algorithm's order of training."""
        many = algorithm.is_mixture
        return Plan(
            posteriors=self.posteriors if many else 1,
            rounds=self.rounds if many else 1,
            epochs=self.epochs,
            online=algorithm is Algorithm.ONLINE,
        )


class Position(NamedTuple):
    """Where an epoch stands in a :class:`Plan`.

    Attributes:
        round: t, from 0.
        rows: the posteriors that train now.
        epoch: of these posteriors in this round, from 0.
    """

    round: int
    rows: slice
    epoch: int


@dataclass(frozen=True)
class Plan:
    """Which posteriors train in which epoch: all K side by side, or (online) one after another in each round.

    Source: slide "β-BNN", lines 3 to 9.

    Args:
        posteriors: K.
        rounds: T.
        epochs: of each posterior, in all rounds together.
        online: whether the mixture is refreshed after each posterior.
    """

    posteriors: int = 1
    rounds: int = 1
    epochs: int = 1
    online: bool = False

    @property
    def epochs_a_round(self) -> int:
        """Epochs of each posterior in one round."""
        return self.epochs // self.rounds

    @property
    def at_once(self) -> int:
        """Posteriors that train side by side."""
        return 1 if self.online else self.posteriors

    @property
    def total_epochs(self) -> int:
        """Epochs of the training loop."""
        return self.epochs * (self.posteriors // self.at_once)

    @property
    def sparse(self) -> int:
        """Epochs between two checkpoints or looks at the test items: about sixty of them in all."""
        return max(1, self.total_epochs // 60)

    def position(self, epoch: int) -> Position:
        """Where the loop's ``epoch`` stands."""
        segment, inner = divmod(epoch, self.epochs_a_round)
        if not self.online:
            return Position(segment, slice(0, self.posteriors), inner)
        number, row = divmod(segment, self.posteriors)
        return Position(number, slice(row, row + 1), inner)

    def ends_segment(self, epoch: int) -> bool:
        """Whether the posteriors that train now are finished in this round after ``epoch``."""
        return self.position(epoch).epoch == self.epochs_a_round - 1

    def progress(self, epoch: float) -> float:
        """Share of its own epochs that the posterior in training has behind it, for a fractional ``epoch`` of the loop."""
        place = self.position(int(epoch))
        return (place.round * self.epochs_a_round + place.epoch + epoch % 1) / self.epochs
