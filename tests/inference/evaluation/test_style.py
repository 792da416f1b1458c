"""Curves are told apart by colour, by marker and, where colours come again, by dash; also by colour-blind readers."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from inference.evaluation.style import COLOURS, STYLE, headline, key, look
from tests.pictures import assert_readable

DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
"""Machado, Oliveira and Fernandes (2009), severity 1, of linear RGB."""


def seen(colour, matrix):
    """sRGB as a reader with this ``matrix`` sees it."""
    value = np.array(to_rgb(colour))
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    changed = np.clip(matrix @ linear, 0, 1)
    return np.where(changed <= 0.0031308, 12.92 * changed, 1.055 * changed ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("matrix", [np.eye(3), DEUTERANOPIA])
def test_colours_differ_or_have_other_markers(matrix):
    """The first three, which most pictures need, by colour alone."""
    for first, second in itertools.combinations(range(len(COLOURS)), 2):
        distance = np.linalg.norm(seen(COLOURS[first], matrix) - seen(COLOURS[second], matrix))
        assert distance > (0.2 if second < 3 else 0.0)
        assert look(first).marker != look(second).marker


def test_twenty_curves_have_twenty_looks():
    drawn = [look(number) for number in range(20)]
    assert len({(found.colour, found.dash) for found in drawn}) == 20
    assert len({(found.colour, found.marker) for found in drawn}) == 20


@pytest.mark.parametrize("beside", [False, True])
def test_the_key_is_outside_and_has_each_label_once(beside):
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
        for axis in axes:
            axis.plot([0, 1], label="a curve with a long name that takes much room")
            axis.plot([1, 0], label="another")
        axes[1].plot([1, 1], label="a third")
        headline(figure, "Which of the curves of this picture, which has a long question, is it?", "glyphs, 5-way 1-shot")
        key(figure, axes, beside=beside)
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == ["another", "a third"]
    assert_readable(figure, "glyphs, 5-way 1-shot")
    plt.close(figure)
