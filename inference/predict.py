"""``python -m inference.predict``: one's own images, or a finished SIB run on other data, way, shot or K."""

from __future__ import annotations

from inference.runs.beginning import begin

if __name__ == "__main__":
    begin()

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from data.catalogue import is_attributed, is_described, load_data
from data.episodes import Attributes, TaskSpec
from data.errors import UserError
from data.inputs import fit_images
from data.items import LabelledItems
from data.sources.folder import load_tree
from data.sources.one_shot_runs import one_shot_runs
from inference.meta.learner import FittedLearner
from inference.meta.own_images import OwnTask, classify, first_lines, gaussian_classes, summary, write_table
from inference.meta.prediction import DRAWS, TaskPredictions
from inference.meta.report import UNITS, TaskRecord, evaluate_learner, evaluate_runs, format_records
from inference.meta.sheet import prediction_sheet
from inference.runs.checks import check_device, chosen_device
from inference.runs.commands import flags_in_errors, notes, read_options, run_process
from inference.runs.files import check_out, sole_writer, write_atomically, write_json, writing
from inference.runs.folder import RunFolder
from inference.runs.help import Example, Group
from inference.runs.options import Options
from inference.runs.tensors import load_features
from inference.runs.values import Names, NonNegativeInt, PositiveInt, PositiveNumber, TwoOrMore, plain
from models.networks.feature_network import FeatureNetwork
from models.networks.layers import embed

DESCRIPTION = (
    """Classify your own images by a few labelled ones, or evaluate a finished SIB run on other data, way, shot or K."""
)
EXAMPLES = (
    Example("--run RUN --support labelled --query new_images", "your own images: folders by class, and images without labels"),
    Example("--backbone resnet18 --weights IMAGENET1K_V1 --support labelled --query new_images", "without a run"),
    Example("--run RUN --way 20 --steps 5", "the same guide, other tasks"),
    Example("--run RUN --root other_images --split all", "tasks of other images"),
)


DRAWN_TASKS = ("data", "root", "split", "exclude", "way", "shot", "queries", "imbalance", "within_alphabet", "tasks")
"""Options about tasks that are drawn."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Which network and guide, on what.

    Args:
        support: folder of labelled images, one folder for each class, any number of images in each.
        query: images to classify: folders, files or patterns such as photos/*.jpg, separated by commas. Accuracy is told where
            they stand in folders named as the classes.
        run: folder of a finished svi_sib run, or a file that SIB.save wrote.
        backbone: without a run, the feature network, such as resnet18; its classes are Gaussians about their means.
        weights: of the backbone, a file or a name of torchvision's, as for svi_sib.
        samples: posterior draws behind probabilities and intervals.
        batch: the most queries that shape one posterior; as many per class as in training when not given.
        variant: guide to use, such as distance-beta0.1-k3; the one that validation tasks chose when not given.
        data: data set; the run's own features when not given.
        root: folder or zip archive of the images.
        image_size: must be the run's; of a backbone, its weights' own when not given.
        one_shot_runs: evaluate on Lake's one-shot runs, in this folder or zip archive, instead of tasks that are drawn.
        split: train, val or test; all takes every class below root, for data without splits.
        exclude: leave out classes whose names start with one of these, separated by commas.
        way: classes per task.
        shot: support images per class.
        queries: query images per class.
        imbalance: query proportions ~ Dirichlet(imbalance) instead of balanced ones.
        within_alphabet: all classes of a task are of one alphabet (of classes named alphabet/character).
        steps: K; the trained one when not given.
        tasks: test tasks.
        invert: the images' ink is dark where the run's is bright.
        out: JSON file of the results, predict.json in the run folder when not given; of your own images the folder of table and
            sheet, runs/predict-<time> when not given.
        device: where to compute; auto takes a GPU where there is one.
        progress: progress bars.
    """

    _data: ClassVar[Group] = Group.DATA
    support: str | None = None
    query: Names | None = None
    data: str | None = None
    root: str | None = None
    one_shot_runs: str | None = None
    image_size: PositiveInt | None = None
    split: Literal["train", "val", "test", "all"] = "test"
    exclude: Names | None = None
    invert: bool = False
    _network: ClassVar[Group] = Group.NETWORK
    backbone: str | None = None
    weights: str | None = None
    _tasks: ClassVar[Group] = Group.TASKS
    way: TwoOrMore = 5
    shot: PositiveInt = 1
    queries: PositiveInt = 15
    imbalance: PositiveNumber | None = None
    within_alphabet: bool = False
    tasks: TwoOrMore = 1000
    _guide: ClassVar[Group] = Group.GUIDE
    variant: str | None = None
    steps: NonNegativeInt | None = None
    _evaluation: ClassVar[Group] = Group.EVALUATION
    samples: TwoOrMore = DRAWS
    batch: PositiveInt | None = None
    _run: ClassVar[Group] = Group.RUN
    run: str | None = None
    out: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    progress: bool = True

    def check(self) -> None:
        super().check()
        if (self.support is None) != (self.query is None):
            raise UserError("your own images are given by `support` (labelled) and `query` together")
        if self.run is None and self.support is None:
            raise UserError("give `run`, a finished svi_sib run, or your own images by `support` and `query`")
        if self.support is not None and (self.run is None) == (self.backbone is None):
            raise UserError("give either `run`, a finished svi_sib run, or `backbone` and `weights`")
        if self.backbone is not None and self.weights is None:
            raise UserError(f"`backbone={self.backbone}` needs `weights`: a file, or a name such as IMAGENET1K_V1")
        if self.support is not None:
            unused = ["variant"] if self.run is None else ["image_size"]
            self.check_unused("images in `support` and `query`", [*unused, "one_shot_runs", *DRAWN_TASKS])
        elif self.one_shot_runs is not None:
            self.check_unused("the tasks in `one_shot_runs`", ["image_size", *DRAWN_TASKS])
        check_device(self.device)

    def check_unused(self, what: str, names: Sequence[str]) -> None:
        """Refuse options that say nothing of what is asked for.

        Args:
            what: is asked for.
            names: of the options.

        Raises:
            UserError: one is given.
        """
        usual = {field.name: field.default for field in fields(self)}
        for name in names:
            if (given := getattr(self, name)) != usual[name]:
                raise UserError(f"`{name}={plain(given)}` says nothing of {what}: leave it out")


@flags_in_errors(PredictOptions)
def main(arguments: Sequence[str] | None = None) -> list[TaskRecord] | TaskPredictions:
    """Run the command; returns the predictions of own images, or records, one for each number of steps up to K."""
    options = read_options(PredictOptions, "predict", DESCRIPTION, arguments, examples=EXAMPLES)
    return evaluate_run(options) if options.support is None else classify_images(options)


def classify_images(options: PredictOptions) -> TaskPredictions:
    """Classify one's own images, and write a table and a sheet."""
    assert options.support is not None
    assert options.query is not None
    out = Path(options.out or f"runs/predict-{time.strftime('%Y%m%d-%H%M%S')}")
    check_out(out)
    learner = learner_for(options).to(chosen_device(options.device))
    task = OwnTask.find(options.support, options.query)
    learner.check_way(len(task.class_names), len(task.queries))
    predicted = classify(
        learner,
        task,
        steps=options.steps,
        num_samples=options.samples,
        batch=options.batch,
        invert=options.invert,
        progress=options.progress,
    )
    with writing(out), sole_writer(out, "predictions.csv"):
        table = write_table(out / "predictions.csv", task, predicted)
    print(f"{len(task.class_names)} classes, {len(task.support)} labelled images, {len(task.queries)} queries\n")
    print(f"{first_lines(task, predicted)}\n")
    if scored := summary(task, predicted):
        print(f"{scored}\n")
    print(f"table: {table}")
    title = f"{learner.dataset}, {learner.variant.title}: {len(task.class_names)} classes"
    with writing(out), sole_writer(out, "sheet.png"):
        sheet = write_atomically(out / "sheet.png", prediction_sheet(task, predicted, title).savefig)
    print(f"sheet: {sheet}")
    return predicted


def learner_for(options: PredictOptions) -> FittedLearner:
    """The run's, or one of a pre-trained backbone alone.

    Raises:
        UserError: there is none, or it has no network for images.
    """
    if options.backbone is not None:
        assert options.weights is not None
        network = FeatureNetwork.pretrained(options.backbone, options.weights, image_size=options.image_size)
        return gaussian_classes(network.eval(), f"{options.backbone} with {Path(options.weights).name}")
    assert options.run is not None
    learner = few_shot(FittedLearner.load(options.run, options.variant), options.run)
    if learner.network is None:
        raise UserError(f"{options.run} was fitted from a feature file and has no network for images")
    return learner


def few_shot(learner: FittedLearner, run: str) -> FittedLearner:
    """The learner of a ``run``, where its tasks have a support.

    Raises:
        UserError: they have none.
    """
    if not learner.spec.shot:
        raise UserError(
            f"{run} reads whole domains, of which no image is labelled: `FittedLearner.load(run).trajectory` takes their images"
        )
    return learner


def evaluate_run(options: PredictOptions) -> list[TaskRecord]:
    """Score tasks of a run's data, or of others.

    Raises:
        UserError: results were to be written to a folder.
    """
    assert options.run is not None
    if options.out is not None and os.path.isdir(options.out):
        raise UserError(f"`out={options.out}` is a folder: name a file for the results, such as predict.json")
    run = RunFolder.existing(options.run)
    learner = few_shot(FittedLearner.load(run, options.variant), options.run)
    with notes():
        records, said = (drawn_tasks if options.one_shot_runs is None else lakes_runs)(options, learner, run)
    out = Path(options.out) if options.out else run.path / "predict.json"
    content = {
        "command": "predict",
        "dataset": "one-shot runs" if options.one_shot_runs else options.data or learner.dataset,
        "seed": learner.settings.seed,
        "seconds": {},
        "results": [asdict(record) for record in records],
    }
    with writing(out), sole_writer(out.parent, out.name):
        write_json(out, content)
    print(f"{learner.variant.title} of {run.path}, {said}\n")
    print(f"{format_records(records)}\n\n{UNITS}")
    print(f"\nresults: {out}")
    return records


def drawn_tasks(options: PredictOptions, learner: FittedLearner, run: RunFolder) -> tuple[list[TaskRecord], str]:
    """Records on tasks drawn from classes, and what these are in words."""
    part = excluding(features_for(options, learner, run), options.exclude)
    described = is_described(options.data) if options.data else learner.spec.described
    kind = Attributes.MIXED if is_attributed(options.data or "") else None
    if options.data is None and options.root is None:
        kind = learner.spec.attributes
    spec = TaskSpec(options.way, options.shot, options.queries, options.imbalance, options.within_alphabet, described, kind)
    learner.check_way(spec.way, spec.way * spec.queries)
    records = evaluate_learner(learner, part, spec, split=options.split, tasks=options.tasks, steps=options.steps)
    return records, f"{spec.shape} on {part.num_classes} classes"


def lakes_runs(options: PredictOptions, learner: FittedLearner, run: RunFolder) -> tuple[list[TaskRecord], str]:
    """Records on Lake's one-shot runs, and what these are in words.

    Raises:
        UserError: the run has no network for images, or the runs are none.
    """
    assert options.one_shot_runs is not None
    if learner.network is None:
        raise UserError(f"{run.path} was fitted from a feature file and has no network for images")
    shape = learner.network.image_shape

    def fitted(images: Tensor) -> Tensor:
        flat = fit_images(images.flatten(0, 1), shape).unflatten(0, images.shape[:2])
        return 255 - flat if options.invert else flat

    tasks = one_shot_runs(options.one_shot_runs, shape[-1])
    tasks = tasks._replace(support_x=fitted(tasks.support_x), query_x=fitted(tasks.query_x))
    records = evaluate_runs(learner, tasks, steps=options.steps)
    return records, f"{len(tasks.query_x)} one-shot runs of {tasks.way} classes, each of one alphabet"


def features_for(options: PredictOptions, learner: FittedLearner, run: RunFolder) -> LabelledItems:
    """Backbone features of the split that was asked for.

    Raises:
        UserError: the run has no network for images, or other images are meant than are named.
    """
    if options.data is None and options.root is None:
        if options.split == "all":
            raise UserError("`split=all` needs `root`")
        for name in ("image_size", "invert"):
            if getattr(options, name):
                raise UserError(f"`{name}` is about other images: name them by `data` or `root`")
        return load_features(run.features)[options.split]
    if learner.network is None:
        raise UserError(f"{run.path} was fitted from a feature file and has no network for images")
    size = options.image_size or learner.network.image_shape[-1]
    if options.split == "all":
        if options.root is None:
            raise UserError("`split=all` needs `root`")
        part = load_tree(options.root, size)
    else:
        part = load_data(options.data or "folder", options.root, image_size=size, seed=learner.settings.seed)[options.split]
    if size != learner.network.image_shape[-1]:
        raise UserError(f"the run's images are {learner.network.image_shape[-1]} pixels wide: leave out `image_size`")
    images = fit_images(255 - part.items if options.invert else part.items, learner.network.image_shape)
    return LabelledItems(embed(learner.network, images), part.labels, part.class_names)


def excluding(part: LabelledItems, prefixes: Names | None) -> LabelledItems:
    """The items of classes whose names start with none of the prefixes."""
    if not prefixes:
        return part
    return part.of_classes([name for name in part.class_names if not name.startswith(tuple(prefixes))])


if __name__ == "__main__":
    run_process(main)
