"""Options of ``python -m inference.svi_bnn``."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from dataclasses import dataclass

from data.errors import UserError
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.checks import choose_prior
from inference.runs.options import RunOptions
from inference.runs.values import (
    Choices,
    NonNegativeNumber,
    OpenUnitInterval,
    PositiveInt,
    PositiveNumber,
    Sweep,
    TwoOrMore,
    Widths,
    register_names,
)
from models.bayesian.weight_priors import PriorName, WeightPrior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import LikelihoodName


class Algorithms(Choices[Algorithm]):
    """Algorithms, in the order they are run."""

    known = Algorithm


register_names(PriorName)
register_names(PriorScales)
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
        noise: known standard deviation of gaussian targets; learned when not given.
        algorithms: separated by commas: vanilla, fixed-prior, beta-bnn, online, deterministic; last-layer, low-rank, laplace
            (needs laplace-torch), swag and nuts (small networks, known noise).
        beta: weight of the rate; several, separated by commas, are a sweep of which validation data choose one per algorithm.
        validation: fraction of the training data that chooses β; the chosen one is trained again on all.
        prior: of vanilla, last-layer, low-rank, laplace, swag and nuts: gaussian, laplace, scale-mixture or spike-and-slab.
        prior_scales: of the same algorithms' prior, and of the Gaussian that the mixtures start from: layer or input (learned,
            one for each parameter tensor or input unit), fan-in (1/√fan-in) or fixed. When not given layer, but fixed with a
            prior_scale or beside laplace, swag or nuts, which cannot learn them.
        prior_scale: of the same priors: the scale, in units of 1/√fan-in unless prior_scales is fixed; 1 when not given.
        posteriors: K, networks whose predictions are averaged, the same number for every algorithm but nuts; in the mixtures
            its components.
        bootstrap_size: n_b, items of a bootstrap sample; as many as there are training items when not given.
        rounds: T, how often the mixture is refreshed (once for each posterior in online).
        epochs: passes of each posterior over its data, in all rounds together.
        batch: items per step, over all processes, for each posterior.
        learning_rate: of Adam, decayed to zero by a cosine; weights are in units of their scale, 1/√fan-in at first.
        initial_scale: initial standard deviation of the weights, in the same units.
        scale_speed: learning rate of log standard deviations relative to that of the means.
        prior_speed: learning rate of the prior's log scales relative to that of the means.
        beta_warmup: share of the (first round's) epochs in which β rises to its value.
        weights: which are random: all, last (of the last layer), or names or patterns of parameters, separated by commas; the
            others are points. Last-layer has its own, deterministic and nuts do without.
        particles: draws of the weights per step.
        rank: of low-rank's and swag's covariances.
        structure: of laplace's Hessian: full, kron or diag; full up to 2000 weights, kron beyond, when not given.
        tune_prior: whether laplace chooses the prior's precision by its evidence.
        iterates: of swag: how many it is the Gaussian of, one per epoch of SGD after the epochs of training.
        step_size: of this SGD, constant, on the loss per item; weights are in units of their scale.
        chains: of nuts, side by side.
        warmup: steps of each chain that are thrown away.
        draws: steps of each chain that are kept.
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
    noise: PositiveNumber | None = None
    algorithms: Algorithms = Algorithms(
        (Algorithm.DETERMINISTIC, Algorithm.VANILLA, Algorithm.FIXED, Algorithm.BETA_BNN, Algorithm.ONLINE)
    )
    beta: Sweep = Sweep((0.01, 0.1))
    validation: OpenUnitInterval = 0.2
    prior: PriorName = PriorName.GAUSSIAN
    prior_scales: PriorScales | None = None
    prior_scale: PositiveNumber | None = None
    posteriors: PositiveInt = 3
    bootstrap_size: PositiveInt | None = None
    rounds: PositiveInt = 3
    epochs: PositiveInt = 12
    batch: PositiveInt = 100
    learning_rate: PositiveNumber = 0.05
    initial_scale: PositiveNumber = 0.1
    scale_speed: PositiveNumber = 2.0
    prior_speed: PositiveNumber = 1.0
    beta_warmup: NonNegativeNumber = 0.3
    weights: str = "all"
    particles: PositiveInt = 1
    rank: PositiveInt = 10
    structure: str | None = None
    tune_prior: bool = False
    iterates: TwoOrMore = 40
    step_size: PositiveNumber = 1.0
    chains: TwoOrMore = 16
    warmup: PositiveInt = 50
    draws: PositiveInt = 120
    samples: PositiveInt = 40

    def check(self) -> None:
        super().check()
        if self.prior != PriorName.GAUSSIAN and not any(a.takes_prior for a in self.algorithms):
            takers = ", ".join(algorithm for algorithm in Algorithm if algorithm.takes_prior)
            raise UserError(f"`prior` is of {takers}, none of which is among the `algorithms`")
        for algorithm in self.algorithms:
            self.fit.plan(algorithm)

    @property
    def betas(self) -> tuple[float, ...]:
        """The sweep's β, ascending."""
        return self.beta

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return self.hidden

    def prior_of(self, algorithm: Algorithm) -> tuple[WeightPrior | None, PriorScales]:
        """An algorithm's prior, and the prior's scales.

        Raises:
            UserError: see :func:`~inference.bnn.checks.choose_prior`.
        """
        given = self.prior_scales
        if given is None and any(a.takes_prior and not a.learns_prior for a in self.algorithms):
            given = PriorScales.FIXED  # one prior for all that are compared
        if algorithm.takes_prior:
            return choose_prior(algorithm, self.prior, self.prior_scale, given)
        return choose_prior(algorithm, None, self.prior_scale, given) if algorithm.is_mixture else choose_prior(algorithm)

    @property
    def fit(self) -> FitSettings:
        """How its posteriors are fitted."""
        return FitSettings(
            posteriors=self.posteriors,
            bootstrap_size=self.bootstrap_size,
            rounds=self.rounds,
            epochs=self.epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            initial_scale=self.initial_scale,
            scale_speed=self.scale_speed,
            prior_speed=self.prior_speed,
            beta_warmup=self.beta_warmup,
            seed=self.seed,
            weights=self.weights if self.weights in ("all", "last") else tuple(self.weights.split(",")),
            particles=self.particles,
            rank=self.rank,
            structure=self.structure,
            tune_prior=self.tune_prior,
            iterates=self.iterates,
            step_size=self.step_size,
            chains=self.chains,
            warmup=self.warmup,
            draws=self.draws,
        )
