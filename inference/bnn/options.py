"""Options of ``python -m inference.svi_bnn``."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from data.errors import UserError
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.checks import choose_prior
from inference.runs.help import Group
from inference.runs.options import CompiledOptions
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
class BnnOptions(FitSettings, CompiledOptions):
    """Everything that defines a run.

    Args:
        data: data set: glyphs (digits), letters, mnist, fashion-mnist, cifar10, cifar100, folder (images); curve (regression).
        train_size: training items to use, chosen by the seed; all when not given.
        image_size: height and width in pixels; the given weights' own, or else the data set's, when not given.
        network: mlp, lenet, or a name of torchvision.models or timm.
        network_weights: to start from: a file (.pth, .safetensors) or a name of torchvision's or timm's, such as DEFAULT. With
            weights=last they are kept and a last layer is fitted, else all are fine-tuned; batch norm keeps its statistics.
            Files for torchvision's networks are taken to expect images standardised as for ImageNet.
        hidden: widths of mlp.
        likelihood: of the targets; chosen by them when not given.
        noise: known standard deviation of gaussian targets; learned when not given.
        algorithms: vanilla, fixed-prior, beta-bnn, online, deterministic; last-layer, low-rank, laplace (needs laplace-torch),
            swag and nuts (small networks, known noise).
        beta: β, the weight of the rate; several are a sweep, of which validation data choose one per algorithm.
        prior: of vanilla, last-layer, low-rank, laplace, swag and nuts.
        prior_scales: of the same algorithms' prior, and of the Gaussian that the mixtures start from: layer or input (learned,
            one for each parameter tensor or input unit of a posterior), fan-in (1/√fan-in) or fixed. When not given layer,
            but fixed with a prior_scale or beside laplace, swag or nuts, which cannot learn them.
        prior_scale: of the same priors: the scale, in units of 1/√fan-in unless prior_scales is fixed; 1 when not given.
        posteriors: K, networks of which predictions are averaged, the same number for every algorithm but nuts; in the mixtures
            its components.
        validation: fraction of the training data that chooses β; the chosen one is trained again on all.
        samples: draws of the posterior predictive.
    """

    _data: ClassVar[Group] = Group.DATA
    train_size: TwoOrMore | None = None
    _network: ClassVar[Group] = Group.NETWORK
    network: str = "mlp"
    network_weights: str | None = None
    hidden: Widths = Widths((100,))
    likelihood: LikelihoodName | None = None
    noise: PositiveNumber | None = None
    _guide: ClassVar[Group] = Group.GUIDE
    algorithms: Algorithms = Algorithms(
        (Algorithm.DETERMINISTIC, Algorithm.VANILLA, Algorithm.FIXED, Algorithm.BETA_BNN, Algorithm.ONLINE)
    )
    beta: Sweep = Sweep((0.01, 0.1))
    prior: PriorName = PriorName.GAUSSIAN
    prior_scales: PriorScales | None = None
    prior_scale: PositiveNumber | None = None
    posteriors: PositiveInt = 3
    _evaluation: ClassVar[Group] = Group.EVALUATION
    validation: OpenUnitInterval = 0.2
    samples: PositiveInt = 40

    def check(self) -> None:
        super().check()
        if self.compile and all(a.trains_points or a is Algorithm.NUTS for a in self.algorithms):
            raise UserError("`compile=true` is for posteriors that are trained, and none is among the `algorithms`")
        if self.prior != PriorName.GAUSSIAN and not any(a.takes_prior for a in self.algorithms):
            takers = ", ".join(algorithm for algorithm in Algorithm if algorithm.takes_prior)
            raise UserError(f"`prior` is of {takers}, none of which is among the `algorithms`")
        given = {"prior_scale": self.prior_scale, "prior_scales": self.prior_scales}
        scaled = [algorithm for algorithm in Algorithm if algorithm.takes_prior or algorithm.is_mixture]
        if (named := [name for name, value in given.items() if value is not None]) and not {*scaled} & {*self.algorithms}:
            raise UserError(f"`{named[0]}` is of {', '.join(scaled)}, none of which is among the `algorithms`")
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
        return FitSettings(**{field.name: getattr(self, field.name) for field in fields(FitSettings)})
