"""What a run on few-shot tasks starts from: images, or a feature file."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from data.ambiguous import sampler_of
from data.catalogue import FEW_SHOT, load_data
from data.episodes import check_classes
from data.items import ImageSplits, LabelledItems
from inference.meta.task_options import FewShotOptions
from inference.runs.tensors import Features, dataset_name, load_features
from models.networks.pretrained import size_to_load


class Source(NamedTuple):
    """Images, or features.

    Attributes:
        images: ``None`` where there is a feature file.
        features: ``None`` where there are images.
    """

    images: ImageSplits | None
    features: Features | None

    def part(self, split: str) -> LabelledItems:
        """The items of a split, by name."""
        if self.features is not None:
            return self.features[split]
        assert self.images is not None
        return self.images[split]


def load_source(options: FewShotOptions) -> Source:
    """What the options name, said in two lines.

    Raises:
        UserError: it is not there, or damaged, or is known to have too few classes.
    """
    if options.features:
        return Source(None, load_features(options.features))
    check_known_classes(options)
    print(f"loading {options.data} ...")
    size = size_to_load(options.image_size, options.backbone, options.weights)
    chosen = options.omniglot_choices()
    data = load_data(options.data, options.root, image_size=size, seed=options.seed, **chosen)
    sizes = ", ".join(f"{data[s].num_classes} {s} classes ({len(data[s])} images)" for s in data.splits)
    print(f"{data.name}: {sizes}, {'×'.join(map(str, data.image_shape))}")
    return Source(data, None)


def check_known_classes(options: FewShotOptions) -> None:
    """Fail where the classes of data that are not loaded yet are known to be too few.

    Raises:
        UserError: in one line.
    """
    known = FEW_SHOT[options.data].classes if options.data in FEW_SHOT else None
    for split, classes in known().items() if known else ():
        for way in (options.way, *((options.test_way or ()) if split == "test" else ())):
            check_classes(classes, way, f"{split} split")


def check_test_tasks(options: FewShotOptions, test: LabelledItems) -> None:
    """Fail where the classes of the ``test`` split cannot give the tasks that will be asked of it.

    Raises:
        UserError: in one line.
    """
    usual = options.spec(partition=None)
    for spec in (usual, replace(usual, within_alphabet=options.tests_within_alphabet), *options.test_specs()):
        sampler_of(test, spec, split="test split")


def name_of_source(options: FewShotOptions) -> str:
    """The data set's name in ``metrics.json``."""
    return dataset_name(options.features) if options.features else options.data
