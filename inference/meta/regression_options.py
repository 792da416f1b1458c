"""Options of ``python -m inference.svi_meta --data linear|network|sinusoids|memorisable|ambiguous|poses``."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from data.errors import UserError
from inference.meta.choices import MethodChoices, split_choice
from inference.meta.family_options import MetaOptions, MetaProtocols
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_tasks import PICTURES, POSES, Problem
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings, settings
from inference.meta.task_options import FewShotOptions
from inference.meta.variants import Variant
from inference.runs.help import Group
from inference.runs.values import PositiveInt, PositiveNumber, Sweep, TwoOrMore, plain

USED = (
    *("data", "methods", "beta", "shot", "queries", "tasks", "batch", "learning_rate", "test_tasks"),
    *("seed", "device", "out", "progress"),
)
"""Options that regression does something with."""

GRADIENT = ("fine-tuning", "maml:steps=1", "maml", "maml:first_order", "meta-sgd")
BAYES = ("llama", "llama:scored=queries", "cnp", "ridge", "sib:steps=0", "sib")
DEFAULT = {
    "linear": ("prior", *GRADIENT, "maml:steps=20", *BAYES, "sib:initialisation=learned", "conjugate"),
    "network": ("prior", *GRADIENT, "anil", *BAYES, "ridge:features=bumps"),
    "sinusoids": ("prior", *GRADIENT, "anil", *BAYES, "conjugate"),
    "memorisable": (
        *("maml:steps=1:test_steps=100", "cnp:width=100:code=5", "cnp:width=100:code=5:penalty=weights:weight=0.0001"),
        *("cnp:width=100:code=5:penalty=decay:weight=0.01", "mr-maml:weight=0.0001", "mr-maml:penalty=codes:weight=0.1"),
        *("mr-maml:penalty=decay:weight=0.0001", "mr-cnp:weight=0.0003", "mr-cnp:penalty=codes:weight=0.2"),
        "mr-cnp:penalty=decay:weight=0.01",
    ),
    "poses": (
        *("maml:steps=1:test_steps=5", "mr-maml:steps=5:test_steps=20:noise=1:penalty=codes:weight=0.01"),
        "mr-maml:steps=5:test_steps=20:noise=1:scale=0.01:weight=1e-6",
        *("mr-maml:steps=5:test_steps=20:noise=1:penalty=decay:weight=1e-3", "cnp:width=100:code=100:noise=1"),
        *("mr-cnp:code=100:noise=1:penalty=codes:weight=0.01", "mr-cnp:code=100:noise=1:scale=0.01:weight=1e-6"),
        "mr-cnp:code=100:noise=1:penalty=decay:weight=1e-3",
    ),
    "ambiguous": ("maml:steps=1", "maml", "anil", "cnp", "llama:scored=queries", "platipus:noise_only", "platipus"),
}
"""Methods of each problem where none are given."""


TASKS, BATCH = {"linear": 50000, POSES: 20000}, {"linear": 50, POSES: 10}
"""Training tasks of each problem, and how many of them at once, where nothing is said; those of ``linear`` are others', too."""


class RegressionChoices(MethodChoices):
    """Methods on regression."""

    methods, where = REGRESSION_METHODS, " in regression"


def refuse_unused(data: str, values: Mapping[str, Any]) -> None:
    """Refuse options that regression on these ``data`` does nothing with.

    Args:
        values: option -> value.

    Raises:
        UserError: there is one among them.
    """
    unused = {name: value for name, value in values.items() if name not in USED}
    if unused:
        given = ", ".join(f"`{n}={str(v).lower() if isinstance(v, bool) else plain(v)}`" for n, v in unused.items())
        raise UserError(f"regression (`data={data}`) has no use for {given}: leave it out")


@dataclass(frozen=True, kw_only=True)
class RegressionOptions(FewShotOptions):
    """The options with what regression has as defaults.

    Args:
        data: linear, network, sinusoids, memorisable (sinusoids that tell training tasks apart), ambiguous (a sinusoid or a
            line) or poses (angles of letters, from pictures).
        methods: what is trained, on the same tasks: names, each with its own options behind it, as in maml:steps=1; those of
            the data set's own, about a dozen, when not given.
        beta: β, the weight of the rate of methods that have one; several are a sweep.
        shot: support points per task; 10, of ambiguous 5 and of poses 15, when not given.
        queries: query points per task; whether one changes another is told by two.
        tasks: meta-training tasks of each method; 50000, of poses 20000, when not given.
        batch: tasks per training step; 50, of poses 10, when not given.
        learning_rate: step size of the networks' optimiser; linear models have ten times as much.
        test_tasks: test tasks; validation has as many.
        out: run folder; runs/svi_meta-<time> when not given.
    """

    used: ClassVar[tuple[str, ...]] = USED
    data: str = "linear"
    _tasks: ClassVar[Group] = Group.TASKS
    shot: PositiveInt | None = None  # type: ignore[assignment]
    queries: TwoOrMore = 15
    _guide: ClassVar[Group] = Group.GUIDE
    methods: RegressionChoices | None = None
    beta: Sweep = Sweep((1.0,))
    _training: ClassVar[Group] = Group.TRAINING
    tasks: PositiveInt | None = None  # type: ignore[assignment]
    batch: PositiveInt | None = None  # type: ignore[assignment]
    learning_rate: PositiveNumber = 3e-3
    _evaluation: ClassVar[Group] = Group.EVALUATION
    test_tasks: TwoOrMore = 500
    # known by name, to be refused: all are of images
    protocols: MetaProtocols = MetaOptions.protocols
    train_features: Literal["none", "linear", "all"] = MetaOptions.train_features
    labels: Literal["exclusive", "fixed"] = MetaOptions.labels
    unlabelled: PositiveNumber = MetaOptions.unlabelled
    asked: PositiveInt = MetaOptions.asked

    def __post_init__(self) -> None:
        for name, usual in (("tasks", TASKS), ("batch", BATCH)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual.get(self.data, usual["linear"]))  # frozen from here on
        super().__post_init__()

    @classmethod
    def check_named(cls, named: Mapping[str, Any]) -> None:
        refuse_unused(named.get("data", cls.data), {f.name: named[f.name] for f in fields(cls) if f.name in named})

    def check(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        refuse_unused(self.data, values)
        super().check()
        if self.device == "cuda":
            raise UserError("regression runs on the CPU: leave out `device=cuda`")
        for name, _ in map(split_choice, self.methods or ()):
            if self.data in DEFAULT and self.data not in REGRESSION_METHODS[name].problems:
                known = " or ".join(f"`data={problem}`" for problem in REGRESSION_METHODS[name].problems)
                raise UserError(f"{name} cannot be run on `data={self.data}`: leave it out, or choose {known}")
        if self.data == POSES and self.problem.shot + self.queries > PICTURES:
            asked = f"`shot={self.problem.shot}` and `queries={self.queries}`"
            raise UserError(f"{asked} need more than the {PICTURES} pictures that a letter has: lower one of them")
        if not self.variants():
            raise UserError("`beta=0` has no posterior, and these methods all have one: choose a positive one")

    @property
    def problem(self) -> Problem:
        """The family of tasks."""
        return Problem(self.data, self.shot or 0)

    def variants(self) -> list[Variant]:
        found: list[Variant] = []
        for name, given in map(split_choice, self.methods or DEFAULT.get(self.data, ())):
            found += REGRESSION_METHODS[name].variants(VariantSettings(beta=self.beta, given=given), self.problem)
        return list(dict.fromkeys(found))

    def setup(self) -> Setup:
        """What every method is built and trained with."""
        return Setup(self.problem, settings(GuideSettings, self), settings(MetaSchedule, self), self.queries)
