"""Which pictures a VID run leaves, and from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from data.items import LabelledItems
from inference.evaluation.figures import reliability_diagram
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.runs.study import Figures
from inference.vid import plots
from inference.vid.fit import Fitted, stage_name
from inference.vid.options import Size, VidOptions


def figures(options: VidOptions, fitted: Fitted, test: LabelledItems, records: Sequence[Mapping], run: RunFolder) -> Figures:
    """All pictures of the run by name, each drawn when it is called."""
    smallest = options.sizes[0]
    methods = list(options.parsed_methods)
    drawn: dict[str, Callable[[], Figure]] = {
        "accuracy": lambda: plots.accuracy_by_images([dict(record) for record in records]),
        "reliability": lambda: reliability(fitted, smallest, methods, test.choose(min(5000, len(test)), options.seed)),
    }
    if with_decoders := [name for name in methods if fitted[name, smallest].model.decoders]:
        vid, stage = fitted[with_decoders[0], smallest], f"{stage_name(with_decoders[0], smallest)}-run0"
        items = test.items[:1000]
        drawn["information"] = lambda: plots.information_curves(read_history(run, [stage])[stage], vid.entropies(items))
        if vid.surprise(test.items[:2]):
            drawn["surprise"] = lambda: plots.surprise_maps(items, vid.surprise(items))
    return drawn


def reliability(fitted: Fitted, size: Size, methods: Sequence[str], items: LabelledItems) -> Figure:
    """Every method's calibration."""
    predictions = {name: (fitted[name, size].probabilities(items.items), items.labels) for name in methods}
    return reliability_diagram(predictions, colours=[plots.colour(name, list(methods)) for name in methods])
