"""Options of ``python -m inference.svi_vid``, typed and checked before any work starts."""

# ruff: noqa: RUF009 (defaults are immutable tuples)
from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

from data.errors import UserError
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
        data: the students' data set: glyphs, letters, mnist, fashion-mnist, cifar10, cifar100 or folder.
        root: folder or zip archive of the images.
        image_size: height and width in pixels; the data set's own when not given.
        teacher_data: the teacher's data set, where it is another one.
        teacher_root: its folder or archive.
        teacher: network: mlp, mlp-h, lenet, conv4-64, wrn-d-k, vgg9 or a torchvision.models name.
        teacher_weights: a trained teacher: a file (.safetensors from a run's checkpoints or the cache, or a torchvision state
            dict) or the name of torchvision's weights, such as IMAGENET1K_V1; trained on the teacher's data when not given.
        student: network, as for the teacher.
        student_weights: weights the finetuned student starts from, as for the teacher; trained when not given.
        epochs: of the teacher over its data.
        updates: optimiser steps of a student, whatever its number of images.
        batch: images per step, over all processes.
        learning_rate: of AdamW, with one cycle.
        weight_decay: of AdamW.
        augment: random crops and small warps; mirror images of photographs.
        methods: separated by commas: student, finetuned, kd, lwf, fitnet, fitnet-stages, at, nst, vid, vid-logits, and sums
            such as kd+vid or 0.5*kd+2*vid.
        strength: factor on every λ; several, separated by commas, are a sweep of which validation data choose one per method.
        validation: fraction of a student's labelled images that chooses the strength; the chosen one is trained again on all.
        pairs: layers to compare, as teacher:student,...; found by themselves when not given.
        heteroscedastic: let the decoders' σ depend on the student's features too.
        temperature: of KD (4 when not given) and LwF (2 when not given).
        per_class: N, images per class of the students; several, separated by commas; all is allowed.
        labels: N_ℓ, how many of them have labels; several, separated by commas; all of them when not given.
        runs: students of each method and size, each on images of its own choice.
        seed: of everything random.
        device: auto, cpu or cuda.
        devices: processes to train with; they share each batch.
        precision: Lightning's, such as 32-true or bf16-mixed.
        cache: where trained teachers are kept and found again.
        out: run folder; runs/svi_vid-<time> when not given.
        progress: progress bars.
    """

    data: str = "letters"
    teacher_data: str | None = None
    teacher_root: str | None = None
    teacher: str = "conv4-32"
    teacher_weights: str | None = None
    student: str = "conv4-16"
    student_weights: str | None = None
    epochs: PositiveInt = 10
    updates: PositiveInt = 400
    batch: TwoOrMore = 64
    learning_rate: PositiveNumber = 5e-3
    weight_decay: NonNegativeNumber = 0.05
    augment: bool = True
    methods: Methods = Methods.read("student,kd,vid")
    strength: Sweep = Sweep((1.0,))
    validation: OpenUnitInterval = 0.2
    pairs: LayerPairs | None = None
    heteroscedastic: bool = False
    temperature: PositiveNumber | None = None
    per_class: Counts = Counts((5, 20))
    labels: Counts | None = None
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
