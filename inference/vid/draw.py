"""Which pictures a VID run leaves, and from what."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from data.items import LabelledItems
from inference.evaluation.figures import reliability_diagram
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.vid import plots
from inference.vid.fit import Fitted
from inference.vid.options import Size
from inference.vid.report import VidRecord
from inference.vid.settings import stage_name
from inference.vid.vid import VID

CALIBRATED_ON, DECODED_ON = 5_000, 1_000  # test items of the reliability diagram, and of the decoders' pictures

Figures = dict[str, Callable[[], Figure]]
"""Name -> what draws it: nothing is computed before the call, so that a picture that fails costs itself alone."""


def run_figures(
    fitted: Fitted, test: LabelledItems, records: Sequence[VidRecord], run: RunFolder, *, seed: int = 0, about: str = ""
) -> Figures:
    """All pictures of the run; those of students are of the smallest size. ``about`` is the run, for the titles."""
    smallest = next(size for _, size in fitted)
    students = {name: vid for (name, size), vid in fitted.items() if size == smallest}
    ece = {r["method"]: r["ece"] for r in records if is_first(r, smallest)}
    small = ", ".join(filter(None, (about, smallest.describe())))
    first = ", ".join(filter(None, (small, "first of several runs" if any(r["run"] for r in records) else "")))
    figures: Figures = {
        "accuracy": lambda: plots.accuracy_by_images(records, classes=test.num_classes, about=about),
        "reliability": lambda: draw_reliability(students, test.choose(min(CALIBRATED_ON, len(test)), seed), ece, about=first),
    }
    if decoding := [name for name, vid in students.items() if vid.model.decoders]:
        vid, stage = students[decoding[0]], f"{stage_name(decoding[0], smallest)}-run0"
        own = f"{small}, {decoding[0]}"
        figures["information"] = lambda: draw_information(vid, test, run, stage, about=own)
        if any(len(shape) == 3 and max(shape[1:]) > 1 for shape in vid.decoded_shapes(test.items[:1]).values()):
            figures["surprise"] = lambda: draw_surprise(vid, test, about=own)
    return figures


def is_first(record: VidRecord, size: Size) -> bool:
    """Whether it is of a student that the pictures show."""
    return record["split"] == "test" and record["run"] == 0 and (record["per_class"], record["labels"]) == tuple(size)


def draw_reliability(students: dict[str, VID], items: LabelledItems, ece: dict[str, float], *, about: str = "") -> Figure:
    """Every method's calibration, with the calibration errors ``ece`` of the records."""
    predictions = {name: (vid.probabilities(items.items), items.labels) for name, vid in students.items()}
    styles = [plots.style(name, list(students)) for name in students]
    return reliability_diagram(predictions, styles=styles, ece=ece, about=about)


def draw_information(vid: VID, test: LabelledItems, run: RunFolder, stage: str, *, about: str = "") -> Figure:
    """A student's task loss and decoding gains over training, from the log of this ``stage``."""
    entropies, names = vid.entropies(test.items[:DECODED_ON]), layer_titles(vid.decoded_shapes(test.items[:1]))
    return plots.information_curves(read_history(run, [stage])[stage], entropies, names=names, about=about)


def draw_surprise(vid: VID, test: LabelledItems, *, about: str = "") -> Figure:
    """Where a student knows its teacher."""
    items, names = test.items[:DECODED_ON], layer_titles(vid.decoded_shapes(test.items[:1]))
    broken = {layer: title.replace(": ", "\n", 1) for layer, title in names.items()}
    return plots.surprise_maps(items, vid.surprise(items), names=broken, about=about)


def layer_titles(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The teacher's layers in words, from the ``shapes`` of their outputs: ``layer 1: 32 maps of 14×14``."""
    titles = {}
    for number, (layer, shape) in enumerate(shapes.items(), start=1):
        wide = len(shape) == 3 and max(shape[1:]) > 1
        content = f"{shape[0]} maps of {shape[1]}×{shape[2]}" if wide else f"{math.prod(shape)} numbers"
        titles[layer] = f"layer {number}: {content}"
    return titles
