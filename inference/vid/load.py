"""A run's students and its teacher, read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torch import nn

from data.errors import UserError
from inference.runs.commands import options_from_yaml
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, load_tensors
from inference.vid.networks import Recipe, TeacherSettings, load_network, pretrained_network
from inference.vid.options import Size, VidOptions
from inference.vid.settings import StudentSettings, stage_name
from inference.vid.sources import Sources
from inference.vid.student import blank_items, build_model, build_models, read_pairs
from models.distillation.model import DistillationModel
from models.networks.classifiers import build_network

OWN = "student"
"""The one stage of :meth:`inference.vid.vid.VID.fit`."""


class Loaded(NamedTuple):
    """A student of a run: its model, its teacher, and what it was trained by."""

    model: DistillationModel
    teacher: nn.Module
    method: str
    strength: float


def load_student(
    run: RunFolder | str | Path,
    method: str,
    per_class: int | str | None = None,
    labels: int | None = None,
    number: int = 0,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
) -> Loaded:
    """Arguments are those of :meth:`inference.vid.vid.VID.load`: method, per_class and number say which student.

    Raises:
        UserError: there is none such, its files are damaged, or it was fitted to networks that are not given.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.existing(run)
    options = options_from_yaml(VidOptions, run.config.read_text(), run.config)
    file = find_checkpoint(run, options, method, per_class, labels, number)
    metadata = load_tensors(file)[1]
    if file.stem == OWN and (student is None or teacher is None or "pairs" not in metadata):
        raise UserError(f"{run.path} was fitted to networks of your own: give `student` and `teacher`, or fit anew")
    if "item_shape" not in metadata:  # of a run that did not write it yet
        target = Sources.load(options).target
        metadata |= {"item_shape": list(target.item_shape), "dtype": "uint8", "classes": target.train.num_classes}
    shape, settings = tuple(metadata["item_shape"]), StudentSettings.of(options)
    student = student or build_network(options.student, shape, metadata["classes"])
    teacher = teacher or load_teacher(run, options, shape)
    example = blank_items(metadata)
    if "pairs" in metadata:
        model = build_model(student, teacher, read_pairs(metadata), example, settings)
    else:
        model = build_models(student, teacher, example, method, metadata["strength"], settings)[-1]
    load_state(model, file)
    return Loaded(model.eval(), teacher, metadata["method"], metadata["strength"])


def find_checkpoint(
    run: RunFolder, options: VidOptions, method: str, per_class: int | str | None, labels: int | None, number: int
) -> Path:
    """The file of a finished student, by method, per_class and number as in :meth:`inference.vid.vid.VID.load`: the one of
    ``VID.fit``, or of the largest of the run's sizes that fit.

    Raises:
        UserError: there is none; the message names those there are.
    """
    own = run.checkpoints / f"{OWN}.safetensors"
    if own.exists():
        return own

    def fits(size: Size) -> bool:
        return per_class in (None, size.per_class or "all") and labels in (None, size.labels)

    files = [run.checkpoints / f"{stage_name(method, size)}-run{number}.safetensors" for size in options.sizes if fits(size)]
    if found := [file for file in files if file.exists()]:
        return found[-1]
    known = sorted(file.stem for file in run.checkpoints.glob("*-run*.safetensors"))
    asked = f"{method}, {per_class or 'any number of'} images per class, run {number}"
    raise UserError(f"{run.path} has no finished student of {asked}; it has {', '.join(known) or 'none'}")


def load_teacher(run: RunFolder, options: VidOptions, item_shape: tuple[int, ...]) -> nn.Module:
    """A run's teacher of items of this ``item_shape``: from the weights it was given, from the run folder, or from the cache.

    Raises:
        UserError: it is in none of these.
    """
    if options.teacher_weights is not None:
        return pretrained_network(options.teacher, options.teacher_weights, item_shape)
    pattern = re.compile(rf"teacher-{re.escape(options.teacher)}-[0-9a-f]{{12}}")
    own = [file for file in sorted(run.checkpoints.glob("teacher-*.safetensors")) if pattern.fullmatch(file.stem)]
    if own:
        return pretrained_network(options.teacher, str(own[0]), item_shape)
    source, settings = Sources.load(options).source, TeacherSettings.of(options)
    cached = settings.cache / f"{Recipe.of(options.teacher, source, settings).name}.safetensors"
    if not cached.exists():
        raise UserError(f"the teacher of {run.path} is neither in its checkpoints nor at {cached}: give `teacher`")
    network = build_network(options.teacher, item_shape, source.train.num_classes)
    load_network(network, cached)
    return network
