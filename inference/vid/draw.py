"""Which pictures a VID run leaves, and from what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from data.items import LabelledItems
from inference.evaluation.figures import reliability_diagram
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.vid import plots
from inference.vid.fit import Fitted
from inference.vid.report import VidRecord
from inference.vid.settings import stage_name
from inference.vid.vid import VID

CALIBRATED_ON, DECODED_ON = 5_000, 1_000  # test items of the reliability diagram, and of the decoders' pictures

Figures = dict[str, Callable[[], Figure]]
"""Name -> what draws it: nothing is computed before the call, so that a picture that fails costs itself alone."""


def run_figures(fitted: Fitted, test: LabelledItems, records: Sequence[VidRecord], run: RunFolder, *, seed: int = 0) -> Figures:
    """All pictures of the run; those of students are of the smallest size."""
    smallest = next(size for _, size in fitted)
    students = {name: vid for (name, size), vid in fitted.items() if size == smallest}
    figures: Figures = {
        "accuracy": lambda: plots.accuracy_by_images(records),
        "reliability": lambda: draw_reliability(students, test.choose(min(CALIBRATED_ON, len(test)), seed)),
    }
    if decoding := [name for name, vid in students.items() if vid.model.decoders]:
        vid, stage = students[decoding[0]], f"{stage_name(decoding[0], smallest)}-run0"
        figures["information"] = lambda: draw_information(vid, test, run, stage)
        if any(len(shape) == 3 and max(shape[1:]) > 1 for shape in vid.decoded_shapes(test.items[:1]).values()):
            figures["surprise"] = lambda: draw_surprise(vid, test)
    return figures


def draw_reliability(students: dict[str, VID], items: LabelledItems) -> Figure:
    """Every method's calibration."""
    predictions = {name: (vid.probabilities(items.items), items.labels) for name, vid in students.items()}
    return reliability_diagram(predictions, colours=[plots.colour(name, list(students)) for name in students])


def draw_information(vid: VID, test: LabelledItems, run: RunFolder, stage: str) -> Figure:
    """A student's task loss and decoding gains over training, from the log of this ``stage``."""
    return plots.information_curves(read_history(run, [stage])[stage], vid.entropies(test.items[:DECODED_ON]))


def draw_surprise(vid: VID, test: LabelledItems) -> Figure:
    """Where a student knows its teacher."""
    return plots.surprise_maps(test.items[:DECODED_ON], vid.surprise(test.items[:DECODED_ON]))
