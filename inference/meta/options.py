"""Options of ``python -m inference.svi_sib``, typed and checked before any work starts."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from data.errors import UserError
from inference.meta.methods import METHODS
from inference.meta.named import find_predictor, name_of
from inference.meta.settings import GuideSettings, VariantSettings, settings
from inference.meta.task_options import FewShotOptions, Protocol, Protocols
from inference.meta.variants import Variant
from inference.runs.help import Group
from inference.runs.values import Choices, NonNegativeInt, PositiveNumber, Sweep
from models.tasks.predictors import PREDICTORS


class Predictors(Choices[str]):
    """Names of predictors, or predictor classes of one's own, by ``module.Class``."""

    known = tuple(PREDICTORS)

    @classmethod
    def item(cls, part: Any) -> str:
        name = name_of(part)
        find_predictor(name)
        return name


class MethodNames(Choices[str]):
    """Names of methods."""

    known = tuple(name for name, method in METHODS.items() if not method.fixed_way)


@dataclass(frozen=True, kw_only=True)
class SibOptions(FewShotOptions):
    """Everything that defines a run.

    Args:
        methods: sib, and to stand beside it nearest-mean, gaussian-classes, or another of svi_meta's that takes any number of
            classes.
        predictor: how features become class probabilities: distance, cosine or linear, or module.Class of your own; several
            are a sweep too.
        posterior: of a task's weights: Gaussian, or a point as in the original release.
        prior: of a task's weights: gaussian, mixture (one component per base class) or hierarchical (a posterior on its
            parameters too).
        beta: β, the weight of the rate; several are a sweep, of which validation tasks choose one.
        train_features: what of the features is trained through the guide: none, linear (a map between network and predictor,
            each variant its own) or all (the whole network first, on tasks of images, then the map).
        initialisation: of the task's weights: support (class means; ridge regression), learned (data-independent) or queries
            (for zero-shot).
        gradient: network of the synthetic gradient: equivariant (any way), mlp (the paper's), exact (a reference that sees
            query labels). In regression equivariant and exact take their steps on the support.
        steps: K, synthetic gradient steps.
        inner_lr: step size of the synthetic gradient, at the start in units of the prior's variance unless units are weights.
        learn_inner_lr: learn one inner step size per step.
        units: of the step: the posterior's variance (a natural gradient: what is known well moves little), the prior's, or none
            (weights).
        inner_samples: posterior draws per step in the guide; 0 takes the expectation at the mean.
        protocols: test protocols: standard, imbalanced, lwof (new classes beside the base classes).
        out: run folder; runs/svi_sib-<time> when not given.
    """

    _guide: ClassVar[Group] = Group.GUIDE
    methods: MethodNames = MethodNames(("sib",))
    predictor: Predictors = Predictors(VariantSettings.predictor)
    posterior: Literal["gaussian", "delta"] = VariantSettings.posterior  # type: ignore[assignment]
    prior: Literal["gaussian", "mixture", "hierarchical"] = GuideSettings.prior  # type: ignore[assignment]
    beta: Sweep = Sweep(VariantSettings.beta)
    train_features: Literal["none", "linear", "all"] = "linear"
    initialisation: Literal["support", "learned", "queries"] = GuideSettings.initialisation  # type: ignore[assignment]
    gradient: Literal["equivariant", "mlp", "exact"] = GuideSettings.gradient  # type: ignore[assignment]
    steps: NonNegativeInt = VariantSettings.steps
    inner_lr: PositiveNumber = GuideSettings.inner_lr
    learn_inner_lr: bool = GuideSettings.learn_inner_lr
    units: Literal["posterior", "prior", "weights"] = GuideSettings.units  # type: ignore[assignment]
    inner_samples: NonNegativeInt = GuideSettings.inner_samples
    _evaluation: ClassVar[Group] = Group.EVALUATION
    protocols: Protocols = Protocols((Protocol.STANDARD, Protocol.IMBALANCED))

    def check(self) -> None:
        super().check()
        if self.attributed:
            raise UserError(f"tasks of attributes (`data={self.data}`) are svi_meta's: run it, or choose other data")
        if self.train_features == "all" and self.features:
            raise UserError("a feature file has no images to train a network on: start from images, or `train_features=linear`")
        if self.train_features == "all" and "sib" not in self.methods:
            raise UserError("the network is trained through SIB's guide: add `methods=sib`, or choose `train_features=linear`")
        if Protocol.LWOF in self.protocols and self.holdout < 2 and not self.features:
            raise UserError(
                "the lwof protocol needs images held out of the base classes, half to validate and half to test on: "
                "add `holdout=50`, for example"
            )
        if Protocol.LWOF in self.protocols and self.gradient == "mlp":
            raise UserError(
                "the lwof protocol has base and new classes in one task, and the mlp gradient network a fixed number of them: "
                "choose `gradient=equivariant`"
            )

    def variants(self) -> list[Variant]:
        swept = settings(VariantSettings, self)
        return [variant for name in self.methods for variant in METHODS[name].variants(swept)]

    @property
    def betas(self) -> tuple[float, ...]:
        """The sweep's β, ascending."""
        return self.beta

    @property
    def any_way(self) -> bool:
        """Whether the guide takes any number of classes."""
        return self.gradient != "mlp" and self.initialisation == "support"
