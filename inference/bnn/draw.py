"""Which pictures a β-BNN run leaves, and from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from data.items import LabelledItems, SupervisedData
from inference.bnn import plots
from inference.bnn.algorithms import Algorithm
from inference.bnn.bands import regression_bands
from inference.bnn.fitting import Fit, stage_name, start_of
from inference.bnn.report import BnnRecord
from inference.evaluation.figures import reliability_diagram
from inference.runs.folder import RunFolder
from inference.runs.history import read_history

DRAWN_AT_MOST = 5_000  # test items of the reliability diagram


def figures(
    fitted: Mapping[Algorithm, Fit],
    data: SupervisedData,
    outside: LabelledItems | None,
    sweep: Sequence[BnnRecord],
    run: RunFolder,
    *,
    train: LabelledItems,
    samples: int,
    seed: int,
) -> dict[str, Callable[[], Figure]]:
    """The pictures of the run by name, each drawn when it is called.

    Args:
        fitted: algorithm -> fit.
        outside: items of another kind.
        sweep: validation records.
        run: whose logs hold the learning curves.
        train: what all were trained on.
        samples: draws of the posterior predictive.
        seed: of the choice among test items.
    """
    drawn: dict[str, Callable[[], Figure]] = {"learning_curves": lambda: plots.learning_curves(own_epochs(fitted, run))}
    if sweep:
        drawn["rate_distortion"] = lambda: plots.rate_distortion_curve(sweep)
    if data.is_classification:
        test = data.test.choose(min(DRAWN_AT_MOST, len(data.test)), seed)
        drawn["reliability"] = lambda: reliability(fitted, test, samples)
        if outside is not None:
            drawn["entropy"] = lambda: entropy(fitted, test, outside, samples)
    elif data.item_shape == (1,):
        named = {name.value: bnn.posterior for name, bnn in fitted.items()}
        drawn["regression"] = lambda: regression_bands(named, train.items, train.labels)
    return drawn


def reliability(fitted: Mapping[Algorithm, Fit], test: LabelledItems, samples: int) -> Figure:
    """Accuracy against confidence of every algorithm, from so many ``samples`` of the weights."""
    predictions = {
        name.value: (bnn.posterior.probabilities(test.items, num_samples=samples).cpu(), test.labels)
        for name, bnn in fitted.items()
    }
    return reliability_diagram(predictions, colours=[plots.colour(name) for name in predictions])


def entropy(fitted: Mapping[Algorithm, Fit], test: LabelledItems, outside: LabelledItems, samples: int) -> Figure:
    """Predictive entropy of every algorithm on test items and on items of another kind, from so many
    ``samples`` of the weights."""
    entropies = {
        name.value: tuple(bnn.posterior.entropy(part.items, num_samples=samples).cpu() for part in (test, outside))
        for name, bnn in fitted.items()
    }
    return plots.predictive_entropy(entropies, test.num_classes)  # type: ignore[arg-type]


def own_epochs(fitted: Mapping[Algorithm, Fit], run: RunFolder) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Logged scalars of each algorithm's final training over the epochs of a posterior, not of the loop."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, bnn in fitted.items():
        stage = stage_name(name, bnn.beta)
        curves[name.value] = {}
        for scalars in read_history(run, [start_of(stage), stage]).values():
            epoch_at = dict(zip(*scalars.get("own_epoch", ([], [])), strict=True))
            for key, (steps, values) in scalars.items():
                if key.startswith("val/"):
                    epochs, before = curves[name.value].setdefault(key, ([], []))
                    epochs += [epoch_at[step] for step in steps]
                    before += values
    return curves
