"""Options of ``python -m inference.svi_vid``, typed and checked before any work starts."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data.errors import UserError
from inference.runs.options import check_device, check_fraction, check_minima, check_positive, parse_sweep, split_commas
from inference.runs.training import Loop
from inference.vid.methods import Method


class Size(NamedTuple):
    """How much of the data a student gets.

    Attributes:
        per_class: N, images a class; ``None``: all.
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


@dataclass(frozen=True)
class VidOptions:
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
        batch: images a step.
        learning_rate: of AdamW, with one cycle.
        weight_decay: of AdamW.
        augment: random crops and small warps; mirror images of photographs.
        methods: separated by commas: student, finetuned, kd, lwf, fitnet, fitnet-stages, at, nst, vid, vid-logits, and sums
            such as kd+vid or 0.5*kd+2*vid.
        strength: factor on every λ; several, separated by commas, are a sweep of which validation data choose one a method.
        validation: fraction of a student's labelled images that chooses the strength; the chosen one is trained again on all.
        pairs: layers to compare, as teacher:student,...; found by themselves when not given.
        heteroscedastic: let the decoders' σ depend on the student's features too.
        temperature: of KD (4 when not given) and LwF (2 when not given).
        per_class: N, images a class of the students; several, separated by commas; all is allowed.
        labels: N_ℓ, how many of them have labels; several, separated by commas; all of them when not given.
        runs: students of each method and size, each on images of its own choice.
        seed: of everything random.
        device: auto, cpu or cuda.
        devices: processes to train with.
        precision: Lightning's, such as 32-true or bf16-mixed.
        cache: where trained teachers are kept and found again.
        out: run folder; runs/svi_vid-<time> when not given.
        progress: progress bars.
    """

    data: str = "letters"
    root: str | None = None
    image_size: int | None = None
    teacher_data: str | None = None
    teacher_root: str | None = None
    teacher: str = "conv4-32"
    teacher_weights: str | None = None
    student: str = "conv4-16"
    student_weights: str | None = None
    epochs: int = 10
    updates: int = 400
    batch: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    augment: bool = True
    methods: str = "student,kd,vid"
    strength: str | float | list[float] = "1"
    validation: float = 0.2
    pairs: str | None = None
    heteroscedastic: bool = False
    temperature: float | None = None
    per_class: str | int = "5,20"
    labels: str | int | None = None
    runs: int = 3
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    precision: str = "32-true"
    cache: str = "runs/teachers"
    out: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_minima(self, {"epochs": 1, "updates": 1, "batch": 2, "runs": 1, "devices": 1, "seed": 0, "weight_decay": 0})
        check_positive(self, "learning_rate", *(["temperature"] if self.temperature is not None else []))
        check_fraction(self, "validation")
        check_device(self.device)
        if not self.parsed_methods:
            raise UserError("--methods is empty: choose student, kd, vid, for example")
        self.strengths, self.sizes, self.layer_pairs  # noqa: B018 (checked here)

    @property
    def loop(self) -> Loop:
        """How its stages train."""
        return Loop(self.device, self.devices, self.precision, self.progress)

    @property
    def parsed_methods(self) -> dict[str, Method]:
        """Method by the name it was given."""
        return {name: Method.parse(name) for name in split_commas(self.methods)}

    @property
    def strengths(self) -> tuple[float, ...]:
        """The sweep's factors, ascending."""
        return parse_sweep("strength", self.strength)

    @property
    def layer_pairs(self) -> list[tuple[str, str]] | None:
        """``--pairs`` as (teacher's layer, student's layer)."""
        if self.pairs is None:
            return None
        pairs = [tuple(pair.split(":")) for pair in split_commas(self.pairs)]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"--pairs {self.pairs!r}: give teacher_layer:student_layer, several separated by commas")
        return pairs  # type: ignore[return-value]

    @property
    def sizes(self) -> list[Size]:
        """Every N with every N_ℓ."""
        per_class = parse_counts("per_class", self.per_class)
        labels = [None] if self.labels is None else parse_counts("labels", self.labels)
        for size, labelled in itertools.product(per_class, labels):
            if size is not None and labelled is not None and labelled > size:
                raise UserError(f"--labels {labelled} exceeds the {size} images a class of --per_class")
        return [Size(size, labelled) for size, labelled in itertools.product(per_class, labels)]


def parse_counts(name: str, text: str | int) -> list[int | None]:
    """``"5, 20, all"`` to ``[5, 20, None]``, ascending.

    Raises:
        UserError: neither whole positive numbers nor ``all``.
    """
    words = split_commas(str(text))
    if not words or not all(word == "all" or (word.isdecimal() and int(word) > 0) for word in words):
        raise UserError(f"--{name} {text!r}: positive whole numbers, or all, separated by commas")
    counts = sorted({math.inf if word == "all" else int(word) for word in words})
    return [None if count == math.inf else int(count) for count in counts]
