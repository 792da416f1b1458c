"""Small images and networks for the tests of distillation."""

import pytest
import torch

from data.items import LabelledItems, SupervisedData
from inference.runs.folder import RunFolder
from inference.runs.training import Loop
from inference.runs.updates import Schedule
from inference.vid.fit import Networks, Study
from inference.vid.methods import Method
from inference.vid.options import Size
from inference.vid.settings import StudentSettings
from inference.vid.sources import Sources
from models.networks.classifiers import build_network

SHAPE, CLASSES = (1, 16, 16), 3
FIVE = Size(5)
SCHEDULE = Schedule(1, 8, 5e-3, 0.05)


def images(per_class, seed=0, first=0):
    """Noise; the first pixel of each image tells it from all others."""
    count = CLASSES * per_class
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(0, 255, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    items[:, 0, 0, 0] = first + torch.arange(count)
    return LabelledItems(items, torch.arange(count) % CLASSES, tuple("abc"))


def numbers(items):
    """Which images these are."""
    return set(items[:, 0, 0, 0].tolist())


def network(name="conv4-4", seed=0):
    torch.manual_seed(seed)
    return build_network(name, SHAPE, CLASSES)


@pytest.fixture
def study(tmp_path):
    """``study(methods, ...)``: a study of tiny students, one update each, on 10 training and 5 test images per class."""

    def build(*methods, sizes=(FIVE,), strengths=(1.0,), pretrained=None, mirror=False, runs=1):
        data = SupervisedData("folder", images(10), images(5, seed=1, first=100), mirror=mirror)
        return Study(
            data=Sources(data, data),
            run=RunFolder.create(tmp_path / "run", "svi_vid", ""),
            networks=Networks(network("conv4-8", 1).eval(), pretrained),
            methods={name: Method.parse(name) for name in methods},
            sizes=sizes,
            strengths=strengths,
            validation=0.4,
            runs=runs,
            student_name="conv4-4",
            settings=StudentSettings(SCHEDULE),
            loop=Loop("cpu"),
            seed=0,
        )

    return build
