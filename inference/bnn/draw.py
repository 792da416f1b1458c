"""Which pictures a β-BNN run leaves, and from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.items import LabelledItems, SupervisedData
from inference.bnn import plots
from inference.bnn.bnn import BNN
from inference.bnn.options import Algorithm, BnnOptions
from inference.bnn.report import Record
from inference.evaluation.figures import reliability_diagram, save_figure
from inference.runs.folder import RunFolder
from inference.runs.history import read_history


def draw_run(
    options: BnnOptions,
    fitted: Mapping[Algorithm, BNN],
    data: SupervisedData,
    outside: LabelledItems | None,
    sweep: Sequence[Record],
    run: RunFolder,
) -> list[Path]:
    """All pictures of the run; returns their paths."""
    figures = {"learning_curves": plots.learning_curves(own_epochs(fitted, run))}
    if sweep:
        figures["rate_distortion"] = plots.rate_distortion_curve(sweep)
    if data.is_classification:
        test = data.test.choose(min(5000, len(data.test)), options.seed)
        predictions = {
            name.value: (bnn.posterior.probabilities(test.items, num_samples=options.samples).cpu(), test.labels)
            for name, bnn in fitted.items()
        }
        figures["reliability"] = reliability_diagram(predictions, colours=[plots.colour(name) for name in predictions])
        if outside is not None:
            entropies = {
                name.value: tuple(
                    bnn.posterior.entropy(part.items, num_samples=options.samples).cpu() for part in (test, outside)
                )
                for name, bnn in fitted.items()
            }
            figures["entropy"] = plots.predictive_entropy(entropies, data.train.num_classes)  # type: ignore[arg-type]
    elif data.item_shape == (1,):
        train = data.train.choose(options.train_size, options.seed)
        named = {name.value: bnn.posterior for name, bnn in fitted.items()}
        figures["regression"] = plots.regression_bands(named, train.items, train.labels)
    return [save_figure(figure, run.plots / f"{name}.png") for name, figure in figures.items()]


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
