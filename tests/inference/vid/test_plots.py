"""The pictures of a run from made-up numbers."""

import matplotlib.pyplot as plt
import pytest
import torch

from inference.vid.plots import accuracy_by_images, information_curves, surprise_maps

IMAGES = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)


def record(method, per_class, accuracy, labels=None, run=0):
    return {"split": "test", "method": method, "per_class": per_class, "labels": labels, "run": run, "accuracy": accuracy}


@pytest.mark.parametrize("labels", [(None, None), (1, 2)])
def test_accuracy_is_against_what_varies(labels):
    records = [record("kd", n, a, label) for n, a, label in zip((5, 20), (0.5, 0.75), labels, strict=True)]
    figure = accuracy_by_images([record("teacher", None, 0.9), *records])
    (axis,) = figure.axes
    assert axis.get_xlabel() == ("images per class" if labels[0] is None else "labels per class")
    assert axis.lines[0].get_ydata().tolist() == [50.0, 75.0]
    plt.close(figure)


def test_information_is_the_entropy_less_the_loss():
    history = {"train/labels": ([1, 2], [3.0, 2.0]), "train/teacher.a": ([1, 2], [10.0, 4.0])}
    figure = information_curves(history, {"a": 11.0})
    left, right = figure.axes
    assert right.lines[0].get_ydata().tolist() == [1.0, 7.0]
    assert left.get_ylabel() == "task loss (nats per item)"
    assert right.get_ylabel() == "gain of q(t given s) (nats per item)"
    plt.close(figure)


def test_layers_of_a_single_position_have_no_row():
    figure = surprise_maps(IMAGES, {"a": torch.rand(9, 4, 4), "b": torch.rand(9, 1, 1), "c": torch.rand(9, 2, 1)})
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel() in "abc" and axis.get_ylabel()] == ["a", "c"]
    plt.close(figure)
    with pytest.raises(ValueError, match="no layer has more than one position"):
        surprise_maps(IMAGES, {"b": torch.rand(9, 1, 1)})
