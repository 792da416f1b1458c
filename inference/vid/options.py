"""Options of ``python -m inference.svi_vid``, typed and checked before any work starts."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from data.errors import UserError
from inference.runs.help import Group
from inference.runs.options import RunOptions
from inference.runs.values import (
    Counts,
    NonNegativeNumber,
    OpenUnitInterval,
    PositiveInt,
    PositiveNumber,
    Several,
    Sweep,
    TwoOrMore,
)
from inference.vid.methods import Method


class Size(NamedTuple):
    """How much of the data a student gets.

    Attributes:
        per_class: N, images per class; ``None``: all.
        labels: N_ℓ, how many of them have a label; ``None``: all.
    """

    per_class: int | None
    labels: int | None = None

    @property
    def name(self) -> str:
        """Used for folders and logs."""
        return f"n{self.per_class or 'all'}" + (f"-labels{self.labels}" if self.labels else "")

    def describe(self) -> str:
        """In words."""
        return f"{self.per_class or 'all'} images per class" + (f", {self.labels} with labels" if self.labels else "")


class NamedMethod(NamedTuple):
    """A method under the name it was given."""

    name: str
    method: Method


class Methods(Several[NamedMethod]):
    """Methods and sums of them, such as ``0.5*kd+2*vid``."""

    @classmethod
    def item(cls, part: Any) -> NamedMethod:
        return part if isinstance(part, NamedMethod) else NamedMethod(part, Method.parse(part))

    @staticmethod
    def show(value: NamedMethod) -> str:
        """As it was given."""
        return value.name


class LayerPairs(Several[tuple[str, str]]):
    """Pairs ``teacher_layer:student_layer``."""

    metavar = "T:S,…"

    @classmethod
    def item(cls, part: Any) -> tuple[str, str]:
        """``teacher_layer:student_layer``.

        Raises:
            ValueError: it is no pair.
        """
        pair = tuple(part.split(":")) if isinstance(part, str) else tuple(part)
        if len(pair) != 2:
            raise ValueError("give teacher_layer:student_layer, several separated by commas")
        return pair

    @staticmethod
    def show(value: tuple[str, str]) -> str:
        """As it was given."""
        return ":".join(value)


@dataclass(frozen=True, kw_only=True)
class VidOptions(RunOptions):
    """Everything that defines a run.

    Args:
        data: data set of the students: glyphs (digits), letters, mnist, fashion-mnist, cifar10, cifar100 or folder.
        image_size: height and width in pixels; the given weights' own, or else the data set's, when not given.
        per_class: N, images per class of the students; several are tried one after another; all is allowed.
        labels: N_ℓ, how many of them have labels; several are tried too; all of them when not given.
        teacher_data: the teacher's data set, where it is another one.
        teacher_root: its folder or archive.
        teacher: its network: mlp, mlp-h, lenet, conv4-64, wrn-d-k, vgg9, or a name of torchvision.models or timm.
        teacher_weights: a trained teacher: a file (.pth, .safetensors, a checkpoint too) or a name of torchvision's or
            timm's, such as DEFAULT; trained on the teacher's data when not given. Files for torchvision's networks are taken
            to expect images standardised as for ImageNet.
        student: the students' network, as for the teacher.
        student_weights: what the finetuned student starts from, as for the teacher, last layer or not; trained when not given.
        pairs: layers to compare, teacher:student; found by themselves when not given.
        methods: student, finetuned, kd, lwf, fitnet, fitnet-stages, at, nst, vid, vid-logits, and sums such as kd+vid or
            0.5*kd+2*vid.
        strength: factor on every λ; several are a sweep, of which validation data choose one per method.
        validation: fraction of a student's labelled images that chooses the strength; the chosen one is trained again on all.
        heteroscedastic: let the decoders' σ depend on the student's features too.
        temperature: of KD (4 when not given) and LwF (2 when not given).
        updates: optimiser steps of a student, whatever its number of images.
        epochs: of the teacher over its data.
        batch: images per step, over all processes.
        learning_rate: of AdamW, with one cycle.
        weight_decay: of AdamW.
        augment: random crops and small warps; mirror images of photographs.
        runs: students of each method and size, each on images of its own choice.
        cache: where trained teachers are kept and found again.
        out: run folder; runs/svi_vid-<time> when not given.
    """

    _data: ClassVar[Group] = Group.DATA
    data: str = "letters"
    per_class: Counts = Counts((5, 20))
    labels: Counts | None = None
    teacher_data: str | None = None
    teacher_root: str | None = None
    _network: ClassVar[Group] = Group.NETWORK
    teacher: str = "conv4-32"
    teacher_weights: str | None = None
    student: str = "conv4-16"
    student_weights: str | None = None
    pairs: LayerPairs | None = None
    _method: ClassVar[Group] = Group.METHOD
    methods: Methods = Methods.read("student,kd,vid")
    strength: Sweep = Sweep((1.0,))
    validation: OpenUnitInterval = 0.2
    heteroscedastic: bool = False
    temperature: PositiveNumber | None = None
    _training: ClassVar[Group] = Group.TRAINING
    updates: PositiveInt = 400
    epochs: PositiveInt = 10
    batch: TwoOrMore = 64
    learning_rate: PositiveNumber = 5e-3
    weight_decay: NonNegativeNumber = 0.05
    augment: bool = True
    _run: ClassVar[Group] = Group.RUN
    runs: PositiveInt = 3
    cache: str = "runs/teachers"

    def check(self) -> None:
        super().check()
        for size in self.sizes:
            if size.per_class is not None and size.labels is not None and size.labels > size.per_class:
                raise UserError(f"`labels={size.labels}` exceeds the {size.per_class} images per class of `per_class`")

    @property
    def parsed_methods(self) -> dict[str, Method]:
        """Method by the name it was given."""
        return dict(self.methods)

    @property
    def strengths(self) -> tuple[float, ...]:
        """The sweep's factors, ascending."""
        return self.strength

    @property
    def layer_pairs(self) -> tuple[tuple[str, str], ...] | None:
        """(teacher's layer, student's layer), where they are given."""
        return self.pairs

    @property
    def sizes(self) -> list[Size]:
        """Every N with every N_ℓ."""
        return [Size(*size) for size in itertools.product(self.per_class, self.labels or (None,))]
