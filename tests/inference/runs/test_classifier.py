"""Plain classifiers: the same numbers as a student without a teacher, a head on features, validation, and shared batches."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.augmentation import LETTERS
from data.errors import UserError
from data.items import LabelledItems
from inference.runs.classifier import ClassifierTraining, train_classifier
from inference.runs.folder import RunFolder
from inference.runs.training import Loop, train
from inference.runs.updates import Schedule
from inference.vid.vid import VID
from models.networks.backbones import CosineClassifier
from models.networks.classifiers import build_network

SCHEDULE = Schedule(6, 16, 5e-3, 0.05)
LOOP = Loop("cpu")


def items(classes=4):
    labels = torch.arange(10 * classes) % classes
    images = torch.randint(0, 255, (10 * classes, 1, 16, 16), dtype=torch.uint8)
    return LabelledItems(images, labels, tuple(map(str, range(classes))))


def test_a_teacher_is_a_student_that_has_none(tmp_path):
    """Bit for bit: order, augmentation, optimiser groups, schedule and loss are the same."""
    data = items()
    network = build_network("conv4-4", (1, 16, 16), 4)
    student = copy.deepcopy(network)
    run = RunFolder.create(tmp_path / "run", "test", "")
    train_classifier(network, data, SCHEDULE, LOOP, run, "teacher", augmentation=LETTERS, seed=3)
    options = {"updates": 6, "batch": 16, "learning_rate": 5e-3, "weight_decay": 0.05, "seed": 3, "device": "cpu"}
    VID.fit(student, student, data.items, data.labels, method="student", **options)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in network.state_dict().items())
    assert not network.training


def test_loss_is_the_mean_cross_entropy_of_the_head():
    data, network, head = items(), nn.Flatten(), CosineClassifier(256, 4)
    module = ClassifierTraining(network, LabelledItems(data.items.float(), data.labels, data.class_names), SCHEDULE, head=head)
    x, y = module.draw(module.items, 0)
    values = {}
    (loss,) = module.losses(0, values)
    torch.testing.assert_close(loss, F.cross_entropy(head(network(x)), y))
    assert values["train/labels"] == loss
    assert len(list(module.parameters())) == 2, "of the head"


def test_validation_runs_after_every_round(tmp_path):
    seen = []

    def validate():
        seen.append(1)
        return {"val_accuracy": 1.0 / len(seen)}

    module = ClassifierTraining(build_network("conv4-4", (1, 16, 16), 4), items(), SCHEDULE, validate=validate)
    run = RunFolder.create(tmp_path / "run", "test", "")
    train(module, LOOP, run, "classifier", epochs=module.epochs, monitor="val_accuracy", mode="max")
    assert len(seen) == module.epochs == 6
    assert (run.checkpoints / "classifier" / "best.ckpt").exists()


def test_labels_without_an_output_are_named(tmp_path):
    run = RunFolder.create(tmp_path / "run", "test", "")
    with pytest.raises(UserError, match="labels from 0 to 3, but the network has outputs for 0 to 2"):
        train_classifier(build_network("conv4-4", (1, 16, 16), 3), items(), SCHEDULE, LOOP, run, "teacher")
