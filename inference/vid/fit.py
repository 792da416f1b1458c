"""All students of a VID run: choose each method's strength on validation data, then train on all images with the best."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

from torch import nn

from data.catalogue import load_supervised
from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import mix_seed, seeded
from inference.runs.folder import RunFolder
from inference.vid.methods import Method
from inference.vid.networks import make_network, replace_head, starting_network, trained_network
from inference.vid.options import Size, VidOptions
from inference.vid.report import Record, format_accuracy, make_record
from inference.vid.vid import VID, build_models, fit_student

Fitted = dict[tuple[str, Size], VID]


@dataclass(frozen=True)
class Sources:
    """Data of a run.

    Attributes:
        target: the students'.
        source: the teacher's; the same, where no other is given.
    """

    target: SupervisedData
    source: SupervisedData

    @classmethod
    def load(cls, options: VidOptions) -> Sources:
        """Load both.

        Raises:
            UserError: bad names or files, or images of other sizes.
        """
        target = load_supervised(options.data, options.root, image_size=options.image_size, seed=options.seed)
        if not target.is_classification:
            raise UserError(f"--data {options.data} has no classes: distillation is for images with classes")
        if options.teacher_data is None or options.teacher_weights is not None:
            return cls(target, target)
        root = options.teacher_root or options.root
        source = load_supervised(options.teacher_data, root, image_size=options.image_size, seed=options.seed)
        if source.item_shape != target.item_shape:
            shapes = ["×".join(map(str, data.item_shape)) for data in (source, target)]
            raise UserError(f"the teacher's images are {shapes[0]} and the student's {shapes[1]}: give both one --image_size")
        return cls(target, source)


def check(options: VidOptions, data: Sources) -> None:
    """Fail before any work where data, networks and methods do not fit together.

    Raises:
        UserError: more images asked for than there are, unknown layers, or methods that do not apply.
    """
    for size in options.sizes:
        labelled, _ = choose_items(data.target.train, size, options, run=0)
        if len(options.strengths) > 1:
            hold_out(labelled, options)
    teacher = starting_network(options.teacher, options.teacher_weights, data.source, options)
    if any(method.finetuned for method in options.parsed_methods.values()):
        starting_network(options.student, options.student_weights, data.source, options)
    student = make_network(options.student, data.target.train, options.seed)
    example = data.target.train.items[:2]
    for name, method in options.parsed_methods.items():
        if method.finetuned and data.source is data.target and options.student_weights is None:
            raise UserError(f"{name} starts from weights of other data: give --teacher_data or --student_weights")
        with seeded(options.seed):
            build_models(student, teacher, example, name, 1.0, options)


def choose_items(train: LabelledItems, size: Size, options: VidOptions, run: int) -> tuple[LabelledItems, LabelledItems | None]:
    """The run's own choice: items with labels, and all items where some are without."""
    seed = mix_seed(options.seed, run)
    chosen = train if size.per_class is None else train.choose_per_class(size.per_class, seed)
    if size.labels is None:
        return chosen, None
    return chosen.choose_per_class(size.labels, seed), chosen


def hold_out(labelled: LabelledItems, options: VidOptions) -> tuple[LabelledItems, LabelledItems]:
    """Split ``--validation`` of each class off: (kept, held out)."""
    return labelled.hold_out(max(1, round(options.validation * int(labelled.counts.min()))))


def stage_name(method: str, size: Size) -> str:
    """Start of the names of checkpoints and logs; no file system minds it."""
    return f"{method.replace('*', 'x')}-{size.name}"


@dataclass(frozen=True)
class Study:
    """What all students of a run share.

    Attributes:
        options, data, run: of the run.
        teacher: trained.
        pretrained: the student's network, trained on the teacher's data, where a method starts from it.
    """

    options: VidOptions
    data: Sources
    run: RunFolder
    teacher: nn.Module
    pretrained: nn.Module | None

    @classmethod
    def prepare(cls, options: VidOptions, data: Sources, run: RunFolder) -> Study:
        """Train the teacher (and what finetuned students start from), or find it."""
        teacher = trained_network(options.teacher, options.teacher_weights, data.source, options, run)
        pretrained = None
        if any(method.finetuned for method in options.parsed_methods.values()):
            pretrained = trained_network(options.student, options.student_weights, data.source, options, run)
        return cls(options, data, run, teacher, pretrained)

    def student(self, method: Method, items: LabelledItems, seed: int) -> nn.Module:
        """Where a student starts."""
        if not method.finetuned:
            return make_network(self.options.student, items, seed)
        assert self.pretrained is not None
        with seeded(seed):
            return replace_head(copy.deepcopy(self.pretrained), items.num_classes)

    def fit(self, name: str, size: Size, strength: float, number: int = 0, *, validate: bool = False) -> tuple[VID, Record]:
        """Train one student and score it on test data, or, to ``validate`` a strength, on images held out of its own."""
        options, target = self.options, self.data.target
        labelled, everything = choose_items(target.train, size, options, number)
        images = len(labelled if everything is None else everything)
        scored = target.test
        if validate:
            labelled, scored = hold_out(labelled, options)
        seed = mix_seed(options.seed, number)
        student = self.student(options.parsed_methods[name], labelled, seed)
        vid = fit_student(
            student,
            self.teacher,
            labelled,
            options,
            self.run,
            stage_name(name, size) + (f"-strength{strength:g}-val" if validate else f"-run{number}"),
            method=name,
            strength=strength,
            everything=everything,
            mirror=target.mirror,
            seed=seed,
        )
        return vid, make_record(vid, scored, name, size, images, number, split="val" if validate else "test")

    def fit_all(self) -> tuple[Fitted, list[Record]]:
        """Every method at every size in every run, each at the strength that does best on validation images of the first run.

        Returns:
            the students of the first run, and the records of validation and test.
        """
        fitted: Fitted = {}
        records: list[Record] = []
        strengths = self.options.strengths
        for size, (name, method) in itertools.product(self.options.sizes, self.options.parsed_methods.items()):
            best = strengths[0]
            if len(strengths) > 1 and method.terms:
                tried = [self.fit(name, size, strength, validate=True)[1] for strength in strengths]
                best = min(tried, key=lambda record: record["nll"])["strength"]
                records += tried
            tested = []
            for number in range(self.options.runs):
                vid, record = self.fit(name, size, best, number)
                tested.append(record)
                fitted.setdefault((name, size), vid)
            print(f"{name}, {size.describe()}: {format_accuracy(tested)} %")
            records += tested
        return fitted, records
