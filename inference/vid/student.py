"""One student: its models, its training, and its checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.augmentation import augmentation_for
from data.errors import UserError
from data.items import LabelledItems
from data.seeding import seeded
from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from inference.runs.checks import check_items
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, save_tensors
from inference.runs.training import Loop, train
from inference.vid.methods import Method
from inference.vid.settings import StudentSettings
from inference.vid.training import DistillationTraining
from models.distillation.losses import Transfer
from models.distillation.model import DistillationModel, Pair
from models.networks.layers import as_trained, device_of, layer_outputs

EXAMPLES = 256  # items that decoders start from


def fit_student(
    student: nn.Module,
    teacher: nn.Module,
    data: LabelledItems | None,
    settings: StudentSettings,
    loop: Loop,
    run: RunFolder,
    stage: str,
    *,
    method: str,
    strength: float = 1.0,
    everything: LabelledItems | None = None,
    mirror: bool = False,
    seed: int = 0,
) -> DistillationModel:
    """Train ``student`` in place by one method in ``run``, or read it back where it is finished.

    Args:
        teacher: read only.
        data: items with labels; ``None`` trains on the teacher's layers alone.
        stage: name of its checkpoints and logs.
        strength: factor on the method's λ.
        everything: all items, where not all have labels.
        mirror: whether a mirror image still belongs to its class; see :func:`~data.augmentation.augmentation_for`.
        seed: of decoders, order and augmentation.

    Returns:
        the student with its decoders, in evaluation mode.

    Raises:
        UserError: layers that cannot be found or compared, labels the student has no output for, or a loss that is not finite.
    """
    as_trained(teacher)
    source = data if data is not None else everything
    assert source is not None
    check_items(student, source, classes=data is not None)
    if data is None and not Method.parse(method).terms:
        raise UserError(f"{method} learns from labels alone, and there are none")
    example = source.choose(min(EXAMPLES, len(source)), 0).items
    with seeded(seed):
        models = build_models(student, teacher, example, method, strength, settings)
    finished = run.checkpoints / f"{stage}.safetensors"
    for name, model in zip((f"{stage}-hint", stage)[-len(models) :], models, strict=True):
        if finished.exists():
            break
        is_hint = model is not models[-1]
        module = DistillationTraining(
            RateDistortionELBO()(model.train(), EmptyGuide()),
            teacher,
            None if is_hint else data,
            source if is_hint and everything is None else everything,
            schedule=settings.schedule,
            augmentation=augmentation_for(example, mirror=mirror) if settings.augment else None,
            seed=seed,
        )
        with run.timed(name), seeded(seed):
            train(module, loop, run, name, epochs=module.epochs)
    if not finished.exists():
        save_tensors(finished, models[-1].state_dict(), describe(models[-1], ItemKind.of(source), method, strength))
    load_state(models[-1], finished)
    return as_trained(models[-1]).eval()


def build_models(
    student: nn.Module, teacher: nn.Module, example: Tensor, method: str, strength: float, settings: StudentSettings
) -> list[DistillationModel]:
    """The Pyro model of each stage of training by ``method``, such as ``kd+vid``, with λ times ``strength``: one, or a hint
    stage before it.

    Raises:
        UserError: layers that cannot be found or compared.
    """
    way = Method.parse(method)
    where = (teacher, student, example, strength, settings.pairs)
    try:
        layer_outputs("teacher", teacher, example[:2], [])
        stages = ([way.hint_pairs(*where)] if way.stages else []) + [way.pairs(*where)]
        return [build_model(student, teacher, pairs, example, settings) for pairs in stages]
    except ValueError as error:
        raise UserError(f"{method}: {error}") from None


def build_model(
    student: nn.Module, teacher: nn.Module, pairs: list[Pair], example: Tensor, settings: StudentSettings
) -> DistillationModel:
    """Student and decoders for given pairs.

    Raises:
        ValueError: see :class:`~models.distillation.model.DistillationModel`.
    """
    return DistillationModel(
        student, teacher, pairs, example, heteroscedastic=settings.heteroscedastic, temperature=settings.temperature
    )


class ItemKind(NamedTuple):
    """What a student's items and classes are.

    Attributes:
        shape: of an item.
        dtype: of its numbers.
        class_names: one for each class.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, items: LabelledItems) -> ItemKind:
        """Of a data set."""
        return cls(tuple(items.items.shape[1:]), items.items.dtype, items.class_names)


def describe(model: DistillationModel, kind: ItemKind, method: str, strength: float) -> dict[str, Any]:
    """Metadata of a student's file, which :func:`rebuild` builds it from: what it was trained on, by which ``method`` and with
    which ``strength``."""
    return {
        "method": method,
        "strength": strength,
        "item_shape": list(kind.shape),
        "dtype": str(kind.dtype).removeprefix("torch."),
        "classes": len(kind.class_names),
        "class_names": kind.class_names,
        "pairs": [[pair.teacher, pair.student, pair.weight, str(pair.transfer)] for pair in model.pairs],
        "layers": model.taught_shapes,
        "heteroscedastic": model.heteroscedastic,
        "temperature": model.temperature,
    }


def rebuild(metadata: dict[str, Any], student: nn.Module) -> DistillationModel:
    """The model of a file that :func:`describe` described, before its numbers are read; the teacher is not needed.

    Raises:
        ValueError: the student has not the layers.
    """
    example = blank_items(metadata).to(device_of(student))
    layers = {name: torch.zeros(len(example), *shape) for name, shape in metadata["layers"].items()}
    options = {name: metadata[name] for name in ("heteroscedastic", "temperature")}
    return DistillationModel(student, layers, read_pairs(metadata), example, **options)


def read_pairs(metadata: dict[str, Any]) -> list[Pair]:
    """The pairs that :func:`describe` wrote."""
    return [Pair(teacher, student, weight, Transfer(name)) for teacher, student, weight, name in metadata["pairs"]]


def blank_items(metadata: dict[str, Any]) -> Tensor:
    """Two items of zeros of the kind that :func:`describe` describes: enough to know the shapes of layers by."""
    return torch.zeros(2, *metadata["item_shape"], dtype=getattr(torch, metadata["dtype"]))
