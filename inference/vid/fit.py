"""All students of a VID run: choose each method's strength on validation data, then train on all images with the best."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from data.errors import UserError
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from inference.runs.checks import check_network_memory
from inference.runs.files import check_out
from inference.runs.folder import RunFolder
from inference.runs.training import Loop
from inference.vid.methods import Method, few_layers
from inference.vid.networks import Recipe, TeacherSettings, make_network, replace_head, starting_network, trained_network
from inference.vid.options import Size, VidOptions
from inference.vid.report import VidRecord, format_accuracy, make_record
from inference.vid.settings import StudentSettings, stage_name
from inference.vid.sources import Sources, choose_items
from inference.vid.student import ItemKind, build_models, fit_student
from inference.vid.vid import VID
from models.networks.layers import embed

Fitted = dict[tuple[str, Size], VID]


@dataclass(frozen=True)
class Networks:
    """What a run's students are taught by and start from.

    Attributes:
        teacher: the network, with its weights where they were given.
        pretrained: the network that finetuned students start from, likewise; ``None`` where no method does.
    """

    teacher: nn.Module
    pretrained: nn.Module | None


def check(options: VidOptions, data: Sources) -> Networks:
    """Build the networks, and fail before any work where data, networks and methods do not fit together.

    Raises:
        UserError: more images asked for than there are, unknown layers, methods that do not apply, weights that fit nothing, or
            a cache that cannot be written to.
    """
    for size in options.sizes:
        held = options.validation if len(options.strengths) > 1 else None
        choose_items(data.target.train, size, seed=options.seed, validation=held)
    for name, part in ((options.teacher, data.source), (options.student, data.target)):
        check_network_memory(name, part.item_shape, part.train.num_classes, options.batch, options.loop)
    networks = build_networks(options, data)
    check_cache(options, data, networks)
    student = make_network(options.student, data.target.train, options.seed)
    example, settings = data.target.train.items[:2], StudentSettings.of(options)
    for name, method in options.parsed_methods.items():
        if method.finetuned and data.source is data.target and options.student_weights is None:
            raise UserError(f"{name} starts from weights of other data: give `teacher_data` or `student_weights`")
        with seeded(options.seed):
            build_models(student, networks.teacher, example, name, 1.0, settings)
    if settings.pairs is None:
        notes = [few_layers(method, networks.teacher, student, example) for method in options.parsed_methods.values()]
        for note in dict.fromkeys(filter(None, notes)):
            print(f"note: {note}")
    return networks


def check_cache(options: VidOptions, data: Sources, networks: Networks) -> None:
    """Refuse a cache that networks are to be kept in once they are trained, and cannot be.

    Raises:
        UserError: it is no folder, or cannot be written to.
    """
    settings = TeacherSettings.of(options)
    trained = [options.teacher] if options.teacher_weights is None else []
    trained += [options.student] if networks.pretrained is not None and options.student_weights is None else []
    for name in trained:
        if not os.path.isfile(settings.cache / f"{Recipe.of(name, data.source, settings).name}.safetensors"):
            check_out(settings.cache, "cache")


def build_networks(options: VidOptions, data: Sources) -> Networks:
    """Teacher and finetuned students' start; weights that were given are read here, once.

    Raises:
        UserError: unknown networks, bad weights, weights that no method uses, or a teacher of other classes than its data has.
    """
    finetuned = any(method.finetuned for method in options.parsed_methods.values())
    if options.student_weights is not None and not finetuned:
        raise UserError("`student_weights` are for finetuned students, and `methods` has none: add finetuned, or drop them")
    teacher = starting_network(options.teacher, options.teacher_weights, data.source, options.seed)
    if options.teacher_data is not None and options.teacher_weights is not None:
        outputs, classes = embed(teacher, data.source.train.items[:2]).shape[-1], data.source.train.num_classes
        if outputs != classes:
            raise UserError(
                f"the teacher of {options.teacher_weights} has {outputs} outputs, and `teacher_data={options.teacher_data}`"
                f" {classes} classes: give the data it was trained on, or leave `teacher_data` out"
            )
    if not finetuned:
        return Networks(teacher, None)
    outputs = data.source.train.num_classes
    return Networks(teacher, starting_network(options.student, options.student_weights, data.source, options.seed, outputs))


@dataclass(frozen=True)
class Study:
    """What all students of a run share.

    Attributes:
        data, run: of the run.
        networks: trained.
        methods: by name.
        sizes: how many images and labels students have.
        strengths: factors on λ to choose from.
        validation: fraction of a student's labelled images that chooses.
        runs: repetitions, each with images of its own.
        student_name: the students' network.
        settings, loop, seed: of the students' training.
    """

    data: Sources
    run: RunFolder
    networks: Networks
    methods: Mapping[str, Method]
    sizes: Sequence[Size]
    strengths: Sequence[float]
    validation: float
    runs: int
    student_name: str
    settings: StudentSettings
    loop: Loop
    seed: int

    @classmethod
    def prepare(cls, options: VidOptions, data: Sources, networks: Networks, run: RunFolder) -> Study:
        """Train the teacher (and what finetuned students start from) where it has no weights yet, or find it."""
        settings, trained = TeacherSettings.of(options), networks
        if options.teacher_weights is None:
            teacher = trained_network(networks.teacher, options.teacher, data.source, settings, run)
            trained = Networks(teacher, networks.pretrained)
        if networks.pretrained is not None and options.student_weights is None:
            pretrained = trained_network(networks.pretrained, options.student, data.source, settings, run)
            trained = Networks(trained.teacher, pretrained)
        return cls(
            data,
            run,
            trained,
            options.parsed_methods,
            options.sizes,
            options.strengths,
            options.validation,
            options.runs,
            options.student,
            StudentSettings.of(options),
            options.loop,
            options.seed,
        )

    def student(self, method: Method, items: LabelledItems, seed: int) -> nn.Module:
        """Where a student starts."""
        if not method.finetuned:
            return make_network(self.student_name, items, seed)
        assert self.networks.pretrained is not None
        with seeded(seed):
            return replace_head(copy.deepcopy(self.networks.pretrained), items.num_classes)

    def fit(self, name: str, size: Size, strength: float, number: int = 0, *, validate: bool = False) -> tuple[VID, VidRecord]:
        """Train one student, the ``number``-th of its kind, with λ times ``strength``, and score it on test data, or, to
        ``validate`` a strength, on images held out of its own."""
        target, method = self.data.target, self.methods[name]
        held = self.validation if validate else None
        choice = choose_items(target.train, size, seed=self.seed, run=number, validation=held)
        seed = mix_seed(self.seed, number)
        student = self.student(method, choice.labelled, seed)
        stage = stage_name(name, size) + (f"-strength{strength:g}-val" if validate else f"-run{number}")
        model = fit_student(
            student,
            self.networks.teacher,
            choice.labelled,
            self.settings,
            self.loop,
            self.run,
            stage,
            method=name,
            strength=strength,
            everything=choice.everything,
            mirror=target.mirror,
            seed=seed,
        )
        kind = ItemKind.of(choice.labelled)
        named = {"name": self.student_name, "item_shape": kind.shape, "outputs": len(kind.class_names)}
        vid = VID(model, self.networks.teacher, name, strength, kind, named)
        scored, split = (choice.held, "val") if choice.held is not None else (target.test, "test")
        shown = strength if method.terms else None
        return vid, make_record(vid, scored, name, size, choice.images, number, strength=shown, split=split)

    def choose_strength(self, name: str, size: Size) -> tuple[float, list[VidRecord]]:
        """The strength with the least NLL on images held out of the first run's own, and the records it was chosen by."""
        if len(self.strengths) == 1 or not self.methods[name].terms:
            return self.strengths[0], []
        tried = [self.fit(name, size, strength, validate=True)[1] for strength in self.strengths]
        best = min(range(len(tried)), key=lambda i: tried[i]["nll"])
        return self.strengths[best], tried

    def fit_all(self) -> tuple[Fitted, list[VidRecord]]:
        """Every method at every size in every run, each at its chosen strength.

        Returns:
            the students of the first run, and the records of validation and test.
        """
        fitted: Fitted = {}
        records: list[VidRecord] = []
        for size, name in itertools.product(self.sizes, self.methods):
            best, tried = self.choose_strength(name, size)
            tested = []
            for number in range(self.runs):
                vid, record = self.fit(name, size, best, number)
                tested.append(record)
                fitted.setdefault((name, size), vid)
            print(f"{name}, {size.describe()}: {format_accuracy(tested)} %")
            records += [*tried, *tested]
        return fitted, records
