"""The algorithms, how their posteriors are fitted, and the order in which they train."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple

from data.errors import UserError
from inference.runs.help import Group
from inference.runs.options import Options
from inference.runs.values import (
    ClosedUnitInterval,
    FourOrMore,
    Names,
    NonNegativeInt,
    PositiveInt,
    PositiveNumber,
    TwoOrMore,
)


class Algorithm(StrEnum):
    """Which prior m the rate KL(q ‖ m) is taken against, and at which β.

    Source: "On regularizing deep learning using mutual information", slide "β-BNN".
    """

    VANILLA = "vanilla"
    """A prior of choice, its scales learned or not, and β = 1: Bayes by backprop."""
    FIXED = "fixed-prior"
    """m = N(0, I), β chosen on validation data."""
    BETA_BNN = "beta-bnn"
    """m = the mixture of K posteriors of bootstrap samples, refreshed once a round."""
    ONLINE = "online"
    """The same mixture, refreshed after each posterior."""
    DETERMINISTIC = "deterministic"
    """Maximum likelihood: a network, or with K > 1 a deep ensemble (Lakshminarayanan, Pritzel and Blundell 2017)."""
    LAST_LAYER = "last-layer"
    """Vanilla for the weights of the last layer alone; the others are points, trained by the same objective."""
    LOW_RANK = "low-rank"
    """Vanilla with low-rank plus diagonal Gaussians, which know the weights' strongest correlations."""
    LAPLACE = "laplace"
    """Trained to the posterior's mode; Laplace's approximation around it, with linearised predictions."""
    SWAG = "swag"
    """Trained to the posterior's mode, then the Gaussian of what SGD passes through at a constant step size; with K > 1
    multi-SWAG."""
    NUTS = "nuts"
    """Draws of the posterior itself, by Hamiltonian Monte Carlo: the reference, for small networks."""

    @property
    def is_mixture(self) -> bool:
        """Whether m is the mixture of the posteriors so far."""
        return self in (Algorithm.BETA_BNN, Algorithm.ONLINE)

    @property
    def takes_prior(self) -> bool:
        """Whether it approximates the posterior, β = 1, under a prior of choice; the others have their own."""
        return self in (
            Algorithm.VANILLA,
            Algorithm.LAST_LAYER,
            Algorithm.LOW_RANK,
            Algorithm.LAPLACE,
            Algorithm.SWAG,
            Algorithm.NUTS,
        )

    @property
    def learns_prior(self) -> bool:
        """Whether it can learn the scales of the prior, or of the Gaussian that a mixture starts from."""
        fixed = (Algorithm.LAPLACE, Algorithm.SWAG, Algorithm.NUTS)  # at a mode, learned scales shrink to nothing
        return self.is_mixture or (self.takes_prior and self not in fixed)

    @property
    def trains_points(self) -> bool:
        """Whether what is trained is points."""
        return self in (Algorithm.DETERMINISTIC, Algorithm.LAPLACE, Algorithm.SWAG)

    @property
    def random_subset(self) -> bool:
        """Whether a part of the weights can be random and the others points, all trained by one objective."""
        return self not in (Algorithm.DETERMINISTIC, Algorithm.LAPLACE, Algorithm.NUTS)

    def betas(self, sweep: tuple[float, ...]) -> tuple[float, ...]:
        """The β it is run with: those of the ``sweep``, unless the algorithm fixes its own."""
        return (1.0,) if self.takes_prior else (0.0,) if self is Algorithm.DETERMINISTIC else sweep


@dataclass(frozen=True, kw_only=True)
class FitSettings(Options):
    """How posteriors are fitted, whatever the network, the data and the algorithm.

    Args:
        posteriors: K, networks of which predictions are averaged, the same number for every algorithm but nuts, in the mixtures
            its components; when not given, 4 in the mixtures and 1 elsewhere.
        weights: which are random: all, last (of the last layer), or names or patterns of parameters such as *.bias; the
            others are points, shared by the K. Last-layer has its own, deterministic and nuts do without.
        initial_scale: initial standard deviation of the weights, in the same units; small, so that the means are found before
            the noise grows.
        bootstrap_size: n_b, items of a bootstrap sample; as many as there are training items when not given.
        rounds: T, 2 or more, how often the mixture is refreshed (once for each posterior in online); the first round is against
            what it starts from. Algorithms without a mixture have none.
        rank: of low-rank's and swag's covariances.
        structure: of laplace's Hessian; full up to 2000 weights, kron beyond, when not given.
        tune_prior: whether laplace chooses the prior's precision by its evidence.
        iterates: of swag: how many it is the Gaussian of, one per epoch of SGD after the epochs of training.
        step_size: of this SGD, constant, on the loss per item; in the units of learning_rate.
        chains: of nuts, side by side.
        warmup: steps of each chain that are thrown away.
        draws: steps of each chain that are kept.
        epochs: passes of each posterior over its data, in all rounds together.
        batch: items per step, over all processes, for each posterior.
        learning_rate: of Adam, decayed to zero by a cosine. Weights are measured in units of their scale, 1/√fan-in at first,
            so that it is the largest relative change per step.
        scale_speed: learning rate of log standard deviations relative to that of the means.
        prior_speed: learning rate of the prior's log scales relative to that of the means.
        beta_warmup: share of the first round's epochs in which β rises to its value.
        particles: draws of the weights per step.
        seed: of everything random.

    Raises:
        UserError: a number out of its range.
    """

    _algorithms: ClassVar[Group] = Group.ALGORITHMS
    posteriors: PositiveInt | None = None
    weights: Names = Names(("all",))
    initial_scale: PositiveNumber = 0.1
    bootstrap_size: PositiveInt | None = None
    rounds: PositiveInt = 3
    rank: PositiveInt = 10
    structure: Literal["full", "kron", "diag"] | None = None
    tune_prior: bool = False
    iterates: TwoOrMore = 40
    step_size: PositiveNumber = 1.0
    chains: TwoOrMore = 16
    warmup: PositiveInt = 50
    draws: FourOrMore = 120
    _training: ClassVar[Group] = Group.TRAINING
    epochs: PositiveInt = 12
    batch: PositiveInt = 100
    learning_rate: PositiveNumber = 0.05
    scale_speed: PositiveNumber = 2.0
    prior_speed: PositiveNumber = 1.0
    beta_warmup: ClosedUnitInterval = 0.3
    particles: PositiveInt = 1
    _run: ClassVar[Group] = Group.RUN
    seed: NonNegativeInt = 0

    def plan(self, algorithm: Algorithm) -> Plan:
        """The algorithm's order of training.

        Raises:
            UserError: a single round of a mixture, or epochs that its rounds cannot share equally.
        """
        many = self.posteriors if self.posteriors is not None else 4 if algorithm.is_mixture else 1
        if not algorithm.is_mixture:
            return Plan(many, epochs=self.epochs)
        if self.rounds == 1:  # its rate would be against the prior that the mixture starts from, in online of the first alone
            raise UserError(f"{algorithm}: the mixture counts from the second round on: choose `rounds=2` or more, or vanilla")
        if self.epochs % self.rounds:
            raise UserError(f"{algorithm}: `epochs={self.epochs}` must be a multiple of `rounds={self.rounds}`")
        return Plan(many, self.rounds, self.epochs, online=algorithm is Algorithm.ONLINE)

    def items_per_epoch(self, algorithm: Algorithm, available: int) -> int:
        """How many items a posterior sees in an epoch: n_b in a mixture, else all that are ``available``.

        Raises:
            UserError: n_b exceeds n.
        """
        if not algorithm.is_mixture or self.bootstrap_size is None:
            return available
        if self.bootstrap_size > available:
            raise UserError(f"`bootstrap_size={self.bootstrap_size}` items from {available}: n_b must not exceed n")
        return self.bootstrap_size


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
    def epochs_per_round(self) -> int:
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

    def warmed(self, epoch: float, share: float) -> float:
        """The part of β that counts at a fractional ``epoch`` of the loop: it rises in a ``share`` of the first round."""
        place, rise = self.position(int(epoch)), share * self.epochs_per_round
        return 1.0 if place.round or not rise else min(1.0, (place.epoch + epoch % 1) / rise)

    def position(self, epoch: int) -> Position:
        """Where the loop's ``epoch`` stands."""
        segment, inner = divmod(epoch, self.epochs_per_round)
        if not self.online:
            return Position(segment, slice(0, self.posteriors), inner)
        number, row = divmod(segment, self.posteriors)
        return Position(number, slice(row, row + 1), inner)

    def ends_segment(self, epoch: int) -> bool:
        """Whether the posteriors that train now are finished in this round after ``epoch``."""
        return self.position(epoch).epoch == self.epochs_per_round - 1

    def progress(self, epoch: float) -> float:
        """Share of its own epochs that the posterior in training has behind it, for a fractional ``epoch`` of the loop."""
        place = self.position(int(epoch))
        return (place.round * self.epochs_per_round + place.epoch + epoch % 1) / self.epochs
