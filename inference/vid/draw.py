"""Which pictures a VID run leaves, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.items import LabelledItems
from inference.evaluation.figures import reliability_diagram, save_figure
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.vid import plots
from inference.vid.fit import Fitted, stage_name
from inference.vid.options import VidOptions
from inference.vid.report import Record


def draw_run(options: VidOptions, fitted: Fitted, test: LabelledItems, records: Sequence[Record], run: RunFolder) -> list[Path]:
    """All pictures of the run; returns their paths."""
    smallest = options.sizes[0]
    methods = list(options.parsed_methods)
    figures = {"accuracy": plots.accuracy_by_images(records)}
    items = test.choose(min(5000, len(test)), options.seed)
    predictions = {name: (fitted[name, smallest].probabilities(items.items), items.labels) for name in methods}
    figures["reliability"] = reliability_diagram(predictions, colours=[plots.colour(name, methods) for name in methods])
    with_decoders = [name for name in methods if fitted[name, smallest].model.decoders]
    if with_decoders:
        vid = fitted[with_decoders[0], smallest]
        stage = f"{stage_name(with_decoders[0], smallest)}-run0"
        history = read_history(run, [stage])[stage]
        figures["information"] = plots.information_curves(history, vid.entropies(test.items[:1000]))
        if maps := vid.surprise(test.items[:1000]):
            figures["surprise"] = plots.surprise_maps(test.items[:1000], maps)
    return [save_figure(figure, run.plots / f"{name}.png") for name, figure in figures.items()]
