"""Options that every command on few-shot tasks of images shares: data, feature network, tasks, training, evaluation."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from data.catalogue import is_attributed, is_described
from data.episodes import Attributes, TaskSpec
from data.errors import UserError
from data.mixed import Extent
from inference.meta.variants import Variant
from inference.runs.help import Group
from inference.runs.options import CompiledOptions
from inference.runs.values import (
    Choices,
    Names,
    NonNegativeInt,
    NonNegativeNumber,
    PositiveInt,
    PositiveNumber,
    Shots,
    TwoOrMore,
    Ways,
    plain,
)


class Protocol(StrEnum):
    """Test protocols."""

    STANDARD = "standard"
    """Equally many queries of each class."""
    IMBALANCED = "imbalanced"
    """Query proportions ~ Dirichlet(2)."""
    LWOF = "lwof"
    """Learning without forgetting: new classes beside the base classes."""
    SEMI = "semi"
    """A part of the support without labels; equally many queries of each class."""
    ACTIVE = "active"
    """The same, and some of these labels may be asked for."""


PROTOCOLS = {Protocol.STANDARD: None, Protocol.IMBALANCED: 2.0}
"""Test protocols on new classes alone: name -> concentration of the Dirichlet that draws query proportions."""


class Alphabets(Names):
    """Names of alphabets."""

    @classmethod
    def read(cls, given: Any) -> Self:
        if isinstance(given, str):  # which may end in a bracket, as Japanese_(katakana) does
            given = [part.strip() for part in given.split(",") if part.strip()]
        return super().read(given)


class Protocols(Choices[Protocol]):
    """Test protocols."""

    known: ClassVar[tuple[Protocol, ...]] = (Protocol.STANDARD, Protocol.IMBALANCED, Protocol.LWOF)


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(CompiledOptions):
    """What a run on few-shot tasks of images has, whatever it trains.

    Args:
        data: data set: glyphs, folder, omniglot, cifar-fs, mini-imagenet (images); glyph-descriptions (zero-shot: a
            description of each class), letters-domains (zero-shot: known classes); linear, network, sinusoids (regression).
        image_size: height and width in pixels; the given weights' own, or else the data set's usual size, when not given.
        root: folder or zip archive of its images; of omniglot several, separated by commas, or a folder that holds several:
            their characters are merged by alphabet and name.
        val_alphabets: alphabets of omniglot to validate on, such as Early_Aramaic; chosen by the seed when not given.
        test_alphabets: alphabets of omniglot to test on, likewise; those of the evaluation set where it is among the archives.
        rotations: of omniglot's training characters: each turned by 90, 180 and 270 degrees is a class of its own.
        features: feature file to start from instead of images.
        holdout: images of each base class kept out of pre-training; the lwof protocol needs them.
        backbone: feature network: conv4-64, conv4-128, wrn-28-10, or a name of torchvision.models or timm.
        weights: to start from: a file (.pth, .safetensors) or a name of torchvision's or timm's, such as DEFAULT; kept as they
            are with epochs 0, else fine-tuned at a tenth of the step size. Files for torchvision's networks are taken to
            expect images standardised as for ImageNet.
        epochs: of pre-training the feature network.
        generations: networks pre-trained one after another, for so many epochs each; the one before teaches the next.
        way: classes per task.
        shot: support images per class.
        queries: query images per class.
        train_way: classes of training tasks, such as 5-20: half the batches have as many as way says, the others any number in
            the range. When not given: from way to 20, with a guide that takes any number.
        train_shot: support images per class of training tasks, likewise; from 1 to 5, or to shot, when not given.
        mixed: train on balanced tasks and on tasks with query proportions ~ Dirichlet(2), half and half, as far as the classes
            have images for it; false trains on balanced tasks alone.
        imbalance: train on tasks with query proportions ~ Dirichlet(imbalance) alone.
        within_alphabet: which tasks have all their classes from one alphabet (of classes named alphabet/character): none, those
            that train (and validate), those of the test, or all.
        rank: discriminant directions of the base classes that features are moved into; 0 only normalises them. When not given:
            32 (or fewer, where there are few base classes) for distance and linear, 0 for cosine.
        power: of features before they are normalised: 0.5 takes their square roots, 1 leaves them as they are.
        tasks: meta-training tasks.
        batch: tasks per training step, over all processes.
        learning_rate: outer step size.
        feature_learning_rate: that of the map of features, where it is trained.
        feature_decay: precision of a Gaussian prior on the map's change, per training task.
        network_tasks: tasks of images that a whole network is trained on.
        network_batch: tasks of images per training step.
        network_learning_rate: step size of the whole network.
        batch_norm: of the whole network on tasks: running (the statistics of pre-training, kept) or batch (of a step's images).
        accumulate: training steps of the whole network whose gradients are added up.
        validations: how often validation tasks are scored during training.
        validation_tasks: how many are scored each time, and decide which steps are kept.
        patience: stop after this many validations without a better objective; 0 never stops early.
        test_tasks: tasks per test.
        test_way: classes of test tasks; several are tests of their own; way when not given.
        test_shot: support images per class of test tasks, likewise; shot when not given.
        test_steps: steps that test tasks are scored after, from 0 on; as many as were trained when not given.
        precision: of numbers in pre-training, as Lightning names it; 64-true of the guide, too, which else is 32-true.
        protocols: test protocols: standard, imbalanced.
    """

    _data: ClassVar[Group] = Group.DATA
    val_alphabets: Alphabets | None = None
    test_alphabets: Alphabets | None = None
    rotations: bool = False
    features: str | None = None
    holdout: NonNegativeInt = 0
    _network: ClassVar[Group] = Group.NETWORK
    backbone: str = "conv4-64"
    weights: str | None = None
    epochs: NonNegativeInt = 8
    generations: PositiveInt = 1
    _tasks: ClassVar[Group] = Group.TASKS
    way: TwoOrMore = 5
    shot: PositiveInt = 1
    queries: PositiveInt = 15
    train_way: Extent | None = None
    train_shot: Extent | None = None
    mixed: bool = True
    imbalance: PositiveNumber | None = None
    within_alphabet: Literal["none", "train", "test", "all"] = "none"
    _guide: ClassVar[Group] = Group.GUIDE
    rank: NonNegativeInt | None = None
    power: PositiveNumber = 0.5
    _training: ClassVar[Group] = Group.TRAINING
    tasks: PositiveInt = 12000
    batch: PositiveInt = 16
    learning_rate: PositiveNumber = 5e-3
    feature_learning_rate: PositiveNumber = 1e-3
    feature_decay: NonNegativeNumber = 2.0
    network_tasks: PositiveInt = 4000
    network_batch: PositiveInt = 4
    network_learning_rate: PositiveNumber = 2e-4
    batch_norm: Literal["running", "batch"] = "running"
    accumulate: PositiveInt = 1
    validations: PositiveInt = 10
    validation_tasks: TwoOrMore = 300
    patience: NonNegativeInt = 0
    _evaluation: ClassVar[Group] = Group.EVALUATION
    test_tasks: TwoOrMore = 1000
    test_way: Ways | None = None
    test_shot: Shots | None = None
    test_steps: NonNegativeInt | None = None
    protocols: Protocols = Protocols((Protocol.STANDARD, Protocol.IMBALANCED))

    def check(self) -> None:
        super().check()
        shots = {"shot": (self.shot,), "train_shot": self.train_shot or (1,), "test_shot": self.test_shot or (1,)}
        if self.described and (more := [name for name, given in shots.items() if max(given) > 1]):
            raise UserError(f"classes of {self.data} have one description each: leave out `{more[0]}`")
        for name, given in self.omniglot_choices().items():
            if self.features:
                raise UserError(f"`{name}={plain(given)}` is about images, and a feature file has none: leave it out")
            if self.data != "omniglot":
                raise UserError(f"`{name}={plain(given)}` is about Omniglot: choose `data=omniglot`, or leave it out")

    @property
    def own_networks(self) -> bool:
        """Whether each method trains a feature network of its own, on tasks."""
        return False

    def variants(self) -> list[Variant]:
        """What a run trains."""
        raise NotImplementedError

    @property
    def any_way(self) -> bool:
        """Whether what is trained takes tasks of any number of classes."""
        return True

    @property
    def partition(self) -> int | None:
        """Seed by which training and validation classes are dealt out to labels that they keep; ``None`` where they do not."""
        return None

    @property
    def described(self) -> bool:
        """Whether tasks are zero-shot: the support is a description of each class."""
        return is_described(self.data)

    @property
    def attributed(self) -> bool:
        """Whether tasks are of two out of three attributes."""
        return is_attributed(self.data)

    def omniglot_choices(self) -> dict[str, Any]:
        """What is said of Omniglot alone, as :func:`~data.catalogue.load_data` takes it."""
        said = {name: getattr(self, name) for name in ("val_alphabets", "test_alphabets", "rotations")}
        return {name: value for name, value in said.items() if value}

    @property
    def tests_within_alphabet(self) -> bool:
        """Whether all classes of a test task are of one alphabet."""
        return self.within_alphabet in ("test", "all")

    def test_specs(self) -> list[TaskSpec]:
        """The shapes of test tasks: every way, shot and protocol asked for."""
        return self.specs_under([PROTOCOLS[name] for name in self.protocols if name in PROTOCOLS])

    def specs_under(self, laws: Sequence[float | None]) -> list[TaskSpec]:
        """Every way and shot asked for under each of the ``laws`` of query proportions, see :data:`PROTOCOLS`."""
        asked = itertools.product(self.test_way or (self.way,), self.test_shot or (self.shot,), laws)
        within, kinds = (
            self.tests_within_alphabet,
            (Attributes.UNAMBIGUOUS, Attributes.AMBIGUOUS) if self.attributed else (None,),
        )
        return [
            self.spec(way=way, shot=shot, imbalance=law, within_alphabet=within, attributes=kind, partition=None)
            for way, shot, law in asked
            for kind in kinds
        ]

    def spec(self, **changes: Any) -> TaskSpec:
        """The training tasks' shape, or one that differs in ``changes``."""
        within = self.within_alphabet in ("train", "all")
        kind = Attributes.MIXED if self.attributed else None
        usual = TaskSpec(self.way, self.shot, self.queries, self.imbalance, within, self.described, kind, self.partition)
        return replace(usual, **changes)
