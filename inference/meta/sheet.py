"""A sheet of one's own images: the classes as they were given, and what the queries were taken for."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image, ImageOps

from data.sources.folder import flat, opened
from inference.evaluation.style import BLUE, STYLE, VERMILLION
from inference.meta.own_images import OwnTask
from inference.meta.prediction import TaskPredictions

COLUMNS, MOST_CLASSES, MOST_QUERIES = 8, 24, 40
SIDE = 160  # pixels an image is read at
RIGHT, WRONG, PLAIN = BLUE, VERMILLION, "0.35"


def prediction_sheet(task: OwnTask, predicted: TaskPredictions, title: str) -> Figure:
    """One labelled image per class, then the queries from the most certain to the least, each with its class, probability and
    90 % interval; where there are more than forty queries, every so-manieth.

    Args:
        task: the files.
        predicted: of its queries.
        title: above all.
    """
    first = [int((task.labels == c).nonzero()[0]) for c in range(min(len(task.class_names), MOST_CLASSES))]
    order = predicted.entropy.argsort().tolist()
    chosen = [order[round(i)] for i in np.linspace(0, len(order) - 1, min(len(order), MOST_QUERIES))]
    tops, rows = -(-len(first) // COLUMNS), -(-len(chosen) // COLUMNS)
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure = plt.figure(figsize=(1.25 * COLUMNS, 0.9 + 1.5 * tops + 1.75 * rows), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=(0.35 + 1.5 * tops, 0.35 + 1.75 * rows), squeeze=False).flat
        figure.suptitle(title, fontsize=10, parse_math=False)
        more = len(task.class_names) - len(first)
        upper.supxlabel(f"and {more} classes more" if more else "", fontsize=8)
        draw_row(upper, f"The classes, one labelled image each ({len(task.support)} in all)", tops)
        for axis, index in zip(upper.axes, first, strict=False):
            show(axis, task.support[index])
            axis.set_title(fold(task.class_names[int(task.labels[index])]), fontsize=7, parse_math=False)
        some = "" if len(chosen) == len(order) else f", {len(chosen)} of {len(order)}"
        draw_row(lower, f"Queries from the most certain to the least{some}: predicted class, probability (90 % interval)", rows)
        for axis, query in zip(lower.axes, chosen, strict=False):
            c, label = int(predicted.labels[query]), task.truth[query]
            colour = PLAIN if label is None else RIGHT if label == c else WRONG
            show(axis, task.queries[query], colour)
            mark = "" if label is None else " ✓" if label == c else " ✗"
            interval = f"{predicted.lower[query, c]:.2f}–{predicted.upper[query, c]:.2f}"
            text = f"{fold(task.class_names[c])}{mark}\n{predicted.probabilities[query, c]:.2f} ({interval})"
            axis.set_title(text, fontsize=7, color=colour, parse_math=False)
    return figure


def draw_row(part: SubFigure, title: str, rows: int) -> None:
    """A grid of ``rows`` of empty cells under a ``title``."""
    part.suptitle(title, fontsize=9)
    for axis in np.atleast_1d(part.subplots(rows, COLUMNS)).flat:
        axis.set_axis_off()


def show(axis: Axes, file: Path, colour: str | None = None) -> None:
    """An image file, upright, with a frame of a ``colour`` where one is given."""
    with opened(file) as image:
        image.draft("RGB", (SIDE, SIDE))
        axis.imshow(
            np.asarray(ImageOps.fit(flat(ImageOps.exif_transpose(image), "RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR))
        )
    if colour:
        axis.set_axis_on()
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=True, color=colour, linewidth=2)


def fold(name: str, width: int = 16) -> str:
    """A class name in at most two short lines; of nested ones the last parts."""
    words = name.replace("_", " ").replace("/", " ")
    return "\n".join(textwrap.wrap(words, width)[-2:])
