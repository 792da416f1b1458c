"""``python -m inference.predict``: a finished SIB run on other data, way, shot or K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from data.catalogue import load_data
from data.episodes import TaskSpec
from data.errors import UserError
from data.items import LabelledItems
from data.sources.folder import load_tree
from inference.meta.learner import Learner
from inference.meta.report import UNITS, TaskRecord, evaluate_learner, format_records
from inference.runs.commands import flags_in_errors, notes, read_options, run_process
from inference.runs.folder import RunFolder, write_json
from inference.runs.options import Options
from inference.runs.tensors import load_features
from inference.runs.values import Names, NonNegativeInt, PositiveInt, PositiveNumber, TwoOrMore
from models.networks.layers import embed

DESCRIPTION = "Evaluate a finished SIB run on other data, way, shot or K."


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Which run, on what.

    Args:
        run: folder of a finished svi_sib run.
        variant: guide to use, such as distance-beta0.1-k3; the one that validation tasks chose when not given.
        data: data set; the run's own features when not given.
        root: folder or zip archive of the images.
        image_size: must be the run's.
        split: train, val or test; all takes every class below root, for data without splits.
        exclude: leave out classes whose names start with one of these, separated by commas.
        way: classes per task.
        shot: support images per class.
        queries: query images per class.
        imbalance: query proportions ~ Dirichlet(imbalance) instead of balanced ones.
        steps: K; the trained one when not given.
        tasks: test tasks.
        invert: the images' ink is dark where the run's is bright.
        out: JSON file of the results; predict.json in the run folder when not given.
    """

    run: str
    variant: str | None = None
    data: str | None = None
    root: str | None = None
    image_size: PositiveInt | None = None
    split: Literal["train", "val", "test", "all"] = "test"
    exclude: Names | None = None
    way: TwoOrMore = 5
    shot: PositiveInt = 1
    queries: PositiveInt = 15
    imbalance: PositiveNumber | None = None
    steps: NonNegativeInt | None = None
    tasks: TwoOrMore = 1000
    invert: bool = False
    out: str | None = None


@flags_in_errors(PredictOptions)
def main(arguments: Sequence[str] | None = None) -> list[TaskRecord]:
    """Run the command; returns the records, one for each number of steps up to K."""
    options = read_options(PredictOptions, "predict", DESCRIPTION, arguments)
    run = RunFolder.existing(options.run)
    learner = Learner.load(run, options.variant)
    part = excluding(features_for(options, learner, run), options.exclude)
    spec = TaskSpec(options.way, options.shot, options.queries, options.imbalance)
    learner.check_way(spec.way, spec.way * spec.queries)
    with notes():
        records = evaluate_learner(learner, part, spec, split=options.split, tasks=options.tasks, steps=options.steps)
    out = Path(options.out) if options.out else run.path / "predict.json"
    content = {
        "command": "predict",
        "dataset": options.data or learner.dataset,
        "seed": learner.settings.seed,
        "seconds": {},
        "results": [asdict(record) for record in records],
    }
    write_json(out, content)
    print(f"{learner.variant.name} of {run.path}, {spec.way}-way {spec.shot}-shot on {part.num_classes} classes\n")
    print(f"{format_records(records)}\n\n{UNITS}")
    print(f"\nresults: {out}")
    return records


def features_for(options: PredictOptions, learner: Learner, run: RunFolder) -> LabelledItems:
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
    channels, *_ = learner.network.image_shape
    if size != learner.network.image_shape[-1]:
        raise UserError(f"the run's images are {learner.network.image_shape[-1]} pixels wide: leave out `image_size`")
    images = match_channels(255 - part.items if options.invert else part.items, channels)
    return LabelledItems(embed(learner.network, images), part.labels, part.class_names)


def match_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Grayscale images for a colour network, and the other way round."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return images.float().mean(1, keepdim=True).round().to(torch.uint8)


def excluding(part: LabelledItems, prefixes: Names | None) -> LabelledItems:
    """The items of classes whose names start with none of the prefixes."""
    if not prefixes:
        return part
    kept = [i for i, name in enumerate(part.class_names) if not name.startswith(tuple(prefixes))]
    chosen = torch.isin(part.labels, torch.tensor(kept))
    _, labels = part.labels[chosen].unique(return_inverse=True)
    return LabelledItems(part.items[chosen], labels, tuple(part.class_names[i] for i in kept))


if __name__ == "__main__":
    run_process(main)
