"""The pictures of a run from made-up numbers."""

import matplotlib.pyplot as plt
import pytest
import torch

from inference.vid.draw import layer_titles
from inference.vid.plots import accuracy_by_images, information_curves, surprise_maps
from tests.pictures import assert_readable

IMAGES = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)


def record(method, per_class, accuracy, labels=None, run=0):
    return {"split": "test", "method": method, "per_class": per_class, "labels": labels, "run": run, "accuracy": accuracy}


@pytest.mark.parametrize("labels", [(None, None), (1, 2)])
def test_accuracy_is_against_what_varies(labels):
    records = [record("kd", n, a, label) for n, a, label in zip((5, 20), (0.5, 0.75), labels, strict=True)]
    figure = accuracy_by_images([record("teacher", None, 0.9), *records], classes=26, about="letters")
    assert_readable(figure, "letters")
    (axis,) = figure.axes
    levels = {line.get_label(): line.get_ydata()[0] for line in axis.lines}
    assert (levels["teacher"], levels["chance: 1 in 26"]) == (90.0, pytest.approx(100 / 26))
    assert axis.get_xlabel() == ("images per class" if labels[0] is None else "labels per class")
    assert axis.lines[0].get_ydata().tolist() == [50.0, 75.0]
    plt.close(figure)


def test_information_is_the_entropy_less_the_loss():
    history = {"train/labels": ([1, 2], [3.0, 2.0]), "train/teacher.a": ([1, 2], [10.0, 4.0])}
    figure = information_curves(history, {"a": 11.0}, names={"a": "layer 1: 32 maps of 14×14"}, about="letters, vid")
    assert_readable(figure, "letters, vid")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["layer 1: 32 maps of 14×14"]
    left, right = figure.axes
    assert right.lines[0].get_ydata().tolist() == [1.0, 7.0]
    assert left.get_ylabel() == "task loss (nats per item)"
    assert right.get_ylabel() == "gain of q(t given s) (nats per item)"
    plt.close(figure)


def test_layers_of_a_single_position_have_no_row():
    names = layer_titles({"a": (32, 4, 4), "b": (5,), "c": (8, 1, 1)})
    assert names == {"a": "layer 1: 32 maps of 4×4", "b": "layer 2: 5 numbers", "c": "layer 3: 8 numbers"}
    figure = surprise_maps(IMAGES, {"a": torch.rand(9, 4, 4), "b": torch.rand(9, 1, 1), "c": torch.rand(9, 2, 1)})
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel() in "abc" and axis.get_ylabel()] == ["a", "c"]
    plt.close(figure)
    with pytest.raises(ValueError, match="no layer has more than one position"):
        surprise_maps(IMAGES, {"b": torch.rand(9, 1, 1)})
