"""Options of ``python -m inference.svi_meta``, typed and checked before any work starts."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from data.episodes import TaskSpec
from data.errors import UserError
from data.semi_supervised import Unlabelled
from inference.meta.choices import MethodChoices, read_given, split_choice
from inference.meta.methods import METHODS
from inference.meta.methods.maml import check_blocks
from inference.meta.settings import NETWORK, VariantSettings
from inference.meta.task_options import PROTOCOLS, FewShotOptions, Protocol, Protocols
from inference.meta.variants import Variant
from inference.runs.help import Group
from inference.runs.values import PositiveInt, PositiveNumber, Sweep, TwoOrMore, plain


class ImageMethods(MethodChoices):
    """Methods on images and features."""

    methods = METHODS


class MetaProtocols(Protocols):
    """Test protocols."""

    known = tuple(Protocol)


DEFAULT = ("prototypical", "matching", "relation", "anil", "r2d2", "r2d2:posterior=full", "llama", "tpn", "sib")
ATTRIBUTE_METHODS = ("prototypical", "anil", "r2d2:posterior=full", "llama", "bmaml", "platipus:noise_only", "platipus", "sib")


@dataclass(frozen=True, kw_only=True)
class MetaOptions(FewShotOptions):
    """Everything that defines a run.

    Args:
        data: data set: glyphs, folder, omniglot, cifar-fs, mini-imagenet (images); glyph-descriptions (zero-shot: a
            description of each class), glyph-attributes (which two of three attributes decide is for the support to tell, or
            for nobody); linear, network, sinusoids, memorisable, ambiguous, poses (regression).
        methods: what is trained, on the same tasks: prototypical, matching, relation, siamese, cnp, graph, graph-active (which
            asks for a label), tpn, r2d2, anil, nil, llama, bmaml, maml (which adapts a whole network), mr-maml (a part of one,
            and the rest costs nats), platipus, sib, and without training nearest-mean, gaussian-classes, fine-tuning; each with
            its own options behind it, as in anil:steps=10.
        beta: β, the weight of the rate of methods that have one; several are a sweep.
        train_features: what of the features each method trains with itself: none, linear (a map between network and method) or
            all (a network of its own, from the pre-trained one on, which stays where validation tasks cost no less with it and
            a map; or from scratch with epochs 0).
        train_way: classes of training tasks, such as 5-20; way when not given. Methods with a fixed number of classes take way
            alone.
        labels: of training and validation tasks: exclusive (classes are numbered anew in each task, so that the support must be
            read) or fixed (a class has one label for good, so that training tasks can be learned by heart).
        tasks: meta-training tasks of each method.
        protocols: test protocols: standard, imbalanced, semi (a part of the support has no labels: with them, for methods that
            make something of such items, and without), active (some of these labels are asked for).
        unlabelled: share of a class's support items that have no label in the semi and active protocols.
        asked: labels of a task that are asked for in the active protocol, one by one; of methods that ask by themselves one for
            each query.
        out: run folder; runs/svi_meta-<time> when not given.
    """

    _guide: ClassVar[Group] = Group.GUIDE
    methods: ImageMethods = ImageMethods(DEFAULT)
    beta: Sweep = Sweep((0.1,))
    train_features: Literal["none", "linear", "all"] = "linear"
    _tasks: ClassVar[Group] = Group.TASKS
    labels: Literal["exclusive", "fixed"] = "exclusive"
    _training: ClassVar[Group] = Group.TRAINING
    tasks: PositiveInt = 3000
    _evaluation: ClassVar[Group] = Group.EVALUATION
    protocols: MetaProtocols = MetaProtocols((Protocol.STANDARD, Protocol.IMBALANCED))
    unlabelled: PositiveNumber = 0.8
    asked: PositiveInt = 5

    def check(self) -> None:
        super().check()
        if self.compile and "sib" not in [name for name, _ in map(split_choice, self.methods)]:
            raise UserError("`compile=true` is about SIB's training steps: add sib to `methods`, or leave it out")
        if self.labels == "fixed":
            self.check_fixed_labels()
        if self.attributed:
            self.check_attributes()
        if self.holdout or self.test_steps is not None:
            name = "holdout" if self.holdout else "test_steps"
            raise UserError(f"`{name}={plain(getattr(self, name))}` says nothing to svi_meta: leave it out")
        if self.train_features == "all" and self.features:
            raise UserError("a feature file has no images to train a network on: start from images, or `train_features=linear`")
        fixed = [name for name, _ in map(split_choice, self.methods) if METHODS[name].fixed_way]
        fixed += [variant.method for variant in self.variants() if variant.predictor == NETWORK]
        ways = {self.way, *(self.test_way or ()), *(self.train_way or ())}
        if fixed and len(ways) > 1:
            raise UserError(f"{fixed[0]} takes tasks of one number of classes: leave out `train_way` and `test_way`, or it")
        for name, given in map(split_choice, self.methods):
            if not METHODS[name].variants(VariantSettings(beta=self.beta, given=given)):
                raise UserError(f"{name} has no posterior at β = 0: leave it out, or give a `beta` above 0")
            own = read_given(METHODS[name].options, given)
            check_blocks(getattr(own, "adapted", ""), self.backbone, name)
            if getattr(own, "descriptions", False) and not self.described:
                raise UserError(
                    f"{name}:descriptions is for supports that describe classes, which `data={self.data}` has not: choose "
                    "`data=glyph-descriptions`, or leave out `descriptions`"
                )
        whole = [v.method for v in self.variants() if v.predictor == NETWORK]
        if whole and self.features:
            raise UserError(f"{whole[0]} adapts a network for images, and a feature file has none: start from images")
        if Protocol.LWOF in self.protocols:
            raise UserError("the lwof protocol is SIB's: choose `protocols=standard,imbalanced`, or run svi_sib")
        self.check_hidden()

    def check_fixed_labels(self) -> None:
        """Refuse what does not fit classes that keep their labels.

        Raises:
            UserError: in one line.
        """
        if self.train_way is not None and set(self.train_way) != {self.way}:
            given = f"`train_way={plain(self.train_way)}`"
            raise UserError(f"classes keep one of {self.way} labels (`labels=fixed`, `way={self.way}`): leave out {given}")
        if self.within_alphabet in ("train", "all"):
            given = f"`within_alphabet={self.within_alphabet}`"
            raise UserError(f"classes that keep their labels (`labels=fixed`) are of all alphabets: leave out {given}")
        if self.described or self.attributed:
            what = "descriptions" if self.described else "attributes"
            raise UserError(f"tasks of `data={self.data}` are of {what}, and no class keeps a label: leave out `labels=fixed`")

    def check_hidden(self) -> None:
        """Refuse what does not fit tasks with labels that are hidden, or that may be asked for.

        Raises:
            UserError: in one line.
        """
        if not self.hidden_specs() and self.unlabelled != MetaOptions.unlabelled:
            given = f"`unlabelled={self.unlabelled:g}`"
            whose = "the semi protocol's support, and the active one's"
            raise UserError(f"{given} is a share of {whose}: add one of them to `protocols`, or leave it out")
        if not self.active and self.asked != MetaOptions.asked:
            raise UserError(f"`asked={self.asked}` is about the active protocol: add it to `protocols`, or leave it out")
        if not self.active and (asking := [name for name, _ in map(split_choice, self.methods) if METHODS[name].asks]):
            raise UserError(f"{asking[0]} learns which label to ask for: add active to `protocols`, or choose graph")
        if self.described and self.hidden_specs():
            which = Protocol.SEMI if self.semi else Protocol.ACTIVE
            raise UserError(
                f"the {which} protocol hides some labels of a class, and one of `data={self.data}` has a single description: "
                "leave it out"
            )
        for spec in self.hidden_specs():
            hidden = self.hidden(spec.shot)
            if not 0 < hidden < spec.shot:
                raise UserError(
                    f"by `unlabelled={self.unlabelled:g}` the {'semi' if self.semi else 'active'} protocol hides {hidden} of a "
                    f"class's {spec.shot} labels, and must hide one and leave one: change it, or give `shot=5` or `test_shot=5`"
                )
            if self.active and self.asked > spec.way * hidden:
                raise UserError(f"`asked={self.asked}` is more than the {spec.way * hidden} hidden labels of a task: lower it")

    def check_attributes(self) -> None:
        """Refuse what says nothing of tasks of attributes.

        Raises:
            UserError: in one line.
        """
        if self.way != 2:
            raise UserError(f"`way={self.way}`: a task of attributes (`data={self.data}`) has two classes: give `way=2`")
        usual = {"train_way": None, "test_way": None, "imbalance": None, "within_alphabet": "none", "mixed": True}
        for name, value in usual.items():
            if (given := getattr(self, name)) != value:
                raise UserError(
                    f"a task of attributes (`data={self.data}`) has two classes and equally many queries of both: leave out "
                    f"`{name}={str(given).lower() if isinstance(given, bool) else plain(given)}`"
                )
        if asking := [name for name, _ in map(split_choice, self.methods) if METHODS[name].asks]:
            raise UserError(f"{asking[0]} learns which label to ask for, and those of attributes are all known: choose graph")
        if self.protocols != (Protocol.STANDARD,):
            raise UserError(f"tasks of attributes (`data={self.data}`) have a test of their own: give `protocols=standard`")

    def variants(self) -> list[Variant]:
        found: list[Variant] = []
        for name, given in map(split_choice, self.methods):
            found += METHODS[name].variants(VariantSettings(beta=self.beta, given=given))
        return list(dict.fromkeys(variant for variant in found if not variant.reference))

    @property
    def partition(self) -> int | None:
        return self.seed if self.labels == "fixed" else None

    @property
    def semi(self) -> bool:
        """Whether there are test tasks with a part of the support unlabelled."""
        return Protocol.SEMI in self.protocols

    @property
    def active(self) -> bool:
        """Whether there are test tasks where some of these labels are asked for."""
        return Protocol.ACTIVE in self.protocols

    def hidden(self, shot: int) -> int:
        """How many labels of a class with so many are hidden in both."""
        return round(self.unlabelled * shot)

    def hidden_specs(self) -> list[TaskSpec]:
        """The shapes of these tasks."""
        return self.specs_under([PROTOCOLS[Protocol.STANDARD]]) if self.semi or self.active else []

    def hides(self, method: str) -> bool:
        """Whether labels are hidden in half of the batches that a ``method`` is trained on: of one, by name, whose network has
        to learn what to make of support items without a label, or which of these to ask for."""
        known = METHODS[method]
        return known.asks or (self.semi and known.unlabelled is Unlabelled.SUPPORT)

    @property
    def own_networks(self) -> bool:
        return self.train_features == "all"

    @property
    def any_way(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class AttributeOptions(MetaOptions):
    """The options with what tasks of attributes have as defaults.

    Args:
        data: letters with attributes.
        methods: as of :class:`MetaOptions`; when not given those with a posterior to draw from, and two without.
        beta: β, the weight of the rate of methods that have one; several are a sweep.
        way: 2.
        shot: support images per class.
        protocols: standard: the same test tasks for all, those whose support tells the attributes and those whose does not.
        out: run folder; runs/svi_meta-<time> when not given.
    """

    data: str = "glyph-attributes"
    _tasks: ClassVar[Group] = Group.TASKS
    way: TwoOrMore = 2
    shot: PositiveInt = 5
    _guide: ClassVar[Group] = Group.GUIDE
    methods: ImageMethods = ImageMethods(ATTRIBUTE_METHODS)
    beta: Sweep = Sweep((1.0,))
    _evaluation: ClassVar[Group] = Group.EVALUATION
    protocols: MetaProtocols = MetaProtocols((Protocol.STANDARD,))
