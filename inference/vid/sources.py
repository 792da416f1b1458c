"""Data of a VID run: the students' and the teacher's, and which items each student gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data.catalogue import SUPERVISED, load_supervised
from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import mix_seed
from inference.vid.options import Size, VidOptions
from models.networks.pretrained import size_to_load


@dataclass(frozen=True)
class Sources:
    """Data of a run.

    Attributes:
        target: the students'.
        source: the teacher's, and that of the weights finetuned students start from; the same, where no other is given.
    """

    target: SupervisedData
    source: SupervisedData

    @classmethod
    def load(cls, options: VidOptions) -> Sources:
        """Load both.

        Raises:
            UserError: bad names or files, or images of other sizes.
        """
        root = options.root if options.teacher_data is None else files_of(options.data, options.root)
        size = size_of_weights(options)
        target = load_supervised(options.data, root, image_size=size, seed=options.seed)
        if not target.is_classification:
            raise UserError(f"`data={options.data}` has no classes: distillation is for images with classes")
        if options.teacher_data is None:
            return cls(target, target)
        root = options.teacher_root or files_of(options.teacher_data, options.root)
        source = load_supervised(options.teacher_data, root, image_size=size, seed=options.seed)
        if source.item_shape != target.item_shape:
            shapes = ["×".join(map(str, data.item_shape)) for data in (source, target)]
            raise UserError(f"the teacher's images are {shapes[0]} and the student's {shapes[1]}: give both one `image_size`")
        return cls(target, source)


def size_of_weights(options: VidOptions) -> int | None:
    """Height and width of the images, as asked for or else as given weights have it, the teacher's first; ``None`` where none
    say so.

    Raises:
        UserError: no such weights.
    """
    given = ((options.teacher, options.teacher_weights), (options.student, options.student_weights))
    sizes = [size_to_load(options.image_size, name, weights) for name, weights in given]
    return next((size for size in sizes if size is not None), None)


def files_of(name: str, root: str | None) -> str | None:
    """The root that two data sets have in common, for one of them: a set that is drawn has none."""
    return None if name in SUPERVISED and SUPERVISED[name].embedded else root


@dataclass(frozen=True)
class Choice:
    """The items of one student.

    Attributes:
        labelled: with labels.
        everything: all it trains on, where not all have labels; else ``None``.
        held: kept from training altogether, to choose a strength by; ``None`` where nothing is held out.
        images: how many it has in all, the held ones included.
    """

    labelled: LabelledItems
    everything: LabelledItems | None
    held: LabelledItems | None
    images: int


def choose_items(train: LabelledItems, size: Size, *, seed: int, run: int = 0, validation: float | None = None) -> Choice:
    """A run's own choice of items, the same for all methods.

    Args:
        seed: of the whole; each ``run`` chooses anew.
        validation: fraction of each class's labelled items that is held out, neither with a label nor without among what the
            student trains on.

    Raises:
        UserError: a class has too few items.
    """
    numbers = LabelledItems(torch.arange(len(train)), train.labels, train.class_names)
    mixed = mix_seed(seed, run)
    chosen = numbers if size.per_class is None else numbers.choose_per_class(size.per_class, mixed)
    labelled = chosen if size.labels is None else chosen.choose_per_class(size.labels, mixed)
    images, held = len(chosen), None
    if validation is not None:
        labelled, held = labelled.hold_out(max(1, round(validation * int(labelled.counts.min()))))
        chosen = chosen.subset(~torch.isin(chosen.items, held.items))

    def take(part: LabelledItems) -> LabelledItems:
        return LabelledItems(train.items[part.items], part.labels, part.class_names)

    return Choice(take(labelled), None if size.labels is None else take(chosen), None if held is None else take(held), images)
