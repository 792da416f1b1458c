"""Which pictures a β-BNN run leaves, and from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from data.items import LabelledItems, SupervisedData
from inference.bnn import plots
from inference.bnn.bnn import BNN
from inference.bnn.options import Algorithm, BnnOptions
from inference.bnn.report import Record
from inference.evaluation.figures import reliability_diagram
from inference.runs.folder import RunFolder
from inference.runs.history import read_history
from inference.runs.study import Figures


def figures(
    options: BnnOptions,
    fitted: Mapping[Algorithm, BNN],
    data: SupervisedData,
    outside: LabelledItems | None,
    sweep: Sequence[Record],
    run: RunFolder,
) -> Figures:
    """All pictures of the run by name, each drawn when it is called."""
    drawn: dict[str, Callable[[], Figure]] = {"learning_curves": lambda: plots.learning_curves(own_epochs(fitted, run))}
    if sweep:
        drawn["rate_distortion"] = lambda: plots.rate_distortion_curve(sweep)
    if data.is_classification:
        test = data.test.choose(min(5000, len(data.test)), options.seed)
        drawn["reliability"] = lambda: reliability(options, fitted, test)
        if outside is not None:
            drawn["entropy"] = lambda: entropy(options, fitted, test, outside)
    elif data.item_shape == (1,):
        train = data.train.choose(options.train_size, options.seed)
        named = {name.value: bnn.posterior for name, bnn in fitted.items()}
        drawn["regression"] = lambda: plots.regression_bands(named, train.items, train.labels)
    return drawn


def reliability(options: BnnOptions, fitted: Mapping[Algorithm, BNN], test: LabelledItems) -> Figure:
    """Accuracy against confidence of every algorithm."""
    predictions = {
        name.value: (bnn.posterior.probabilities(test.items, num_samples=options.samples).cpu(), test.labels)
        for name, bnn in fitted.items()
    }
    return reliability_diagram(predictions, colours=[plots.colour(name) for name in predictions])


def entropy(options: BnnOptions, fitted: Mapping[Algorithm, BNN], test: LabelledItems, outside: LabelledItems) -> Figure:
    """Predictive entropy of every algorithm on test items and on items of another kind."""
    entropies = {
        name.value: tuple(bnn.posterior.entropy(part.items, num_samples=options.samples).cpu() for part in (test, outside))
        for name, bnn in fitted.items()
    }
    return plots.predictive_entropy(entropies, test.num_classes)  # type: ignore[arg-type]


def own_epochs(fitted: Mapping[Algorithm, BNN], run: RunFolder) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Logged scalars of each algorithm's final training over the epochs of a posterior, not of the loop."""
    stages = {name.value: f"{name}-beta{bnn.beta:g}" for name, bnn in fitted.items()}
    history = read_history(run, list(stages.values()))
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, stage in stages.items():
        scalars = history.get(stage, {})
        epoch_at = dict(zip(*scalars.get("own_epoch", ([], [])), strict=True))
        curves[name] = {
            key: ([epoch_at[s] for s in steps], values) for key, (steps, values) in scalars.items() if key.startswith("val/")
        }
    return curves
