"""A run's students and its teacher, read back."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data.errors import UserError
from inference.runs.files import writing
from inference.runs.folder import RunFolder
from inference.runs.options import HERE, options_from_yaml
from inference.runs.tensors import load_state, load_tensors, save_tensors
from inference.vid.networks import Recipe, TeacherSettings, load_network
from inference.vid.options import Size, VidOptions
from inference.vid.settings import StudentSettings, stage_name
from inference.vid.sources import Sources
from inference.vid.student import ItemKind, blank_items, build_model, build_models, describe, read_pairs, rebuild
from models.distillation.model import DistillationModel
from models.networks.classifiers import build_network, pretrained_network
from models.networks.layers import INPUT

FORMAT = "sibyl-vid-1"
OWN = "student"
"""The one stage of :meth:`inference.vid.vid.VID.fit`."""


class Loaded(NamedTuple):
    """A student that was read: what a :class:`~inference.vid.vid.VID` has.

    Attributes:
        model: student and decoders.
        teacher: ``None`` where it was nowhere.
        method, strength: what it was trained by.
        kind: of its items and classes.
        network: arguments of :func:`~models.networks.classifiers.build_network`, where the student was built by name.
    """

    model: DistillationModel
    teacher: nn.Module | None
    method: str
    strength: float
    kind: ItemKind
    network: dict[str, Any] | None


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
    options = options_from_yaml(VidOptions, run.read_config(), run.config, HERE)
    file = find_checkpoint(run, options, method, per_class, labels, number)
    tensors, metadata = load_tensors(file)
    if file.stem == OWN and (student is None or "pairs" not in metadata):
        raise UserError(f"{run.path} was fitted to networks of your own: give `student`, or fit anew")
    if "item_shape" not in metadata:  # of a run that did not write it yet
        target = Sources.load(options).target
        metadata |= {"item_shape": list(target.item_shape), "dtype": "uint8", "classes": target.train.num_classes}
    shape, settings = tuple(metadata["item_shape"]), StudentSettings.of(options)
    seen = shape
    if "student.0.mean" in tensors and len(shape) == 3:  # given weights may be of colour images, shown grayscale ones
        seen = (len(tensors["student.0.mean"]), *shape[1:])
    named = {"name": options.student, "item_shape": seen, "outputs": metadata["classes"]} if student is None else None
    network = build_network(options.student, seen, metadata["classes"]) if student is None else copy.deepcopy(student)
    if teacher is None and file.stem != OWN:
        teacher = find_teacher(run, options, shape, needed="layers" not in metadata)
    if "layers" in metadata:
        model = build_for(file, metadata, network)
    elif teacher is None:
        raise UserError(f"{run.path} was fitted to networks of your own: give `student` and `teacher`, or fit anew")
    elif "pairs" in metadata:
        pairs = read_pairs(metadata)
        if options.teacher_weights is not None:
            pairs = [pair._replace(teacher=name_today(pair.teacher, teacher)) for pair in pairs]
        model = build_model(network, teacher, pairs, blank_items(metadata), settings)
    else:
        model = build_models(network, teacher, blank_items(metadata), method, metadata["strength"], settings)[-1]
    load_state(model, file)
    return Loaded(model.eval(), teacher, metadata["method"], metadata["strength"], kind_of(metadata), named)


def save_student(path: Path, loaded: Loaded) -> Path:
    """Write a student with its decoders, without the teacher.

    Raises:
        UserError: another suffix than .safetensors, or a place that cannot be written to.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"`path={path}` must end in .safetensors, which is what it will be")
    described = describe(loaded.model, loaded.kind, loaded.method, loaded.strength)
    described |= {"format": FORMAT, "network": loaded.network}
    with writing(path):
        return save_tensors(path, loaded.model.state_dict(), described)


def load_saved(path: Path, student: nn.Module | None, teacher: nn.Module | None) -> Loaded:
    """Read what :func:`save_student` wrote.

    Args:
        path: the file.
        student: of the architecture that was trained; copied. The file's own where it was built by name.
        teacher: with its weights, where anything but predictions is asked for.

    Raises:
        UserError: a damaged file, one of something else, or another network.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} holds no student: give a file that VID.save wrote, or a run folder")
    named = metadata.get("network")
    if student is None and named is None:
        raise UserError(f"{path} was fitted to a network of your own: give `student`, of the same architecture")
    try:
        network = copy.deepcopy(student)
        if network is None:
            assert named is not None
            network = build_network(named["name"], tuple(named["item_shape"]), named["outputs"])
        model = build_for(path, metadata, network)
        model.to(next(value.dtype for value in tensors.values() if value.is_floating_point()))
        load_state(model, path)
        return Loaded(model.eval(), teacher, metadata["method"], metadata["strength"], kind_of(metadata), named)
    except (KeyError, StopIteration) as error:
        raise UserError(f"{path} is damaged: it lacks {error}") from error


def build_for(path: Path, metadata: dict[str, Any], student: nn.Module) -> DistillationModel:
    """:func:`~inference.vid.student.rebuild`, with an error that names the file.

    Raises:
        UserError: another network.
    """
    try:
        return rebuild(metadata, student)
    except ValueError as error:
        raise UserError(f"{path} belongs to another student: {error}") from None


def kind_of(metadata: dict[str, Any]) -> ItemKind:
    """What the items and classes of a file's student are."""
    names = tuple(metadata.get("class_names") or map(str, range(metadata["classes"])))
    return ItemKind(tuple(metadata["item_shape"]), getattr(torch, metadata["dtype"]), names)


def find_teacher(run: RunFolder, options: VidOptions, item_shape: tuple[int, ...], *, needed: bool) -> nn.Module | None:
    """:func:`load_teacher`, for items of ``item_shape``; ``None`` where it is nowhere and the student does without.

    Raises:
        UserError: it is nowhere, and ``needed``.
    """
    try:
        return load_teacher(run, options, item_shape)
    except UserError:
        if needed:
            raise
        return None


def name_today(layer: str, teacher: nn.Module) -> str:
    """The name of a teacher's layer now: before 0.4 networks of torchvision with given weights had their last layer inside, and
    a layer of its own showed them grayscale images as colour ones."""
    modules, name = dict(teacher.named_modules()), layer.removesuffix(INPUT)
    inner = f"1.{name.partition('.')[2]}"
    if name in modules and not isinstance(modules[name], nn.Identity):
        return layer
    kept = inner in modules and not isinstance(modules[inner], nn.Identity)
    return (inner if kept else "2") + layer[len(name) :]


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
