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
    records: Sequence[BnnRecord],
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
        records: of validation, where there is a sweep, and of the table.
        run: whose logs hold the learning curves.
        train: what all were trained on.
        samples: draws of the posterior predictive.
        seed: of the choice among test items.
    """
    sweep, tested = ([r for r in records if r["split"] == split] for split in ("val", "test"))
    about = f"{data.name}, {len(train)} training items"
    betas = ", ".join(f"{name} {fit.beta:g}" for name, fit in fitted.items() if fit.beta)
    about += f"; β: {betas}" if betas else ""
    drawn: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: plots.learning_curves(own_epochs(fitted, run), tested, about=about)
    }
    if sweep:
        drawn["rate_distortion"] = lambda: plots.rate_distortion_curve(sweep, about=about)
    if data.is_classification:
        test = data.test.choose(min(DRAWN_AT_MOST, len(data.test)), seed)
        drawn["reliability"] = lambda: reliability(fitted, test, samples, tested, about=about)
        if outside is not None:
            drawn["entropy"] = lambda: entropy(fitted, test, outside, samples, tested, about=about)
    elif data.item_shape == (1,):
        named = {name.value: fit.posterior for name, fit in fitted.items()}
        drawn["regression"] = lambda: regression_bands(named, train.items, train.labels, about=about)
    return drawn


def reliability(
    fitted: Mapping[Algorithm, Fit], test: LabelledItems, samples: int, tested: Sequence[BnnRecord], *, about: str
) -> Figure:
    """Accuracy against confidence of every algorithm, by ``samples`` draws, with the calibration errors of the table."""
    predictions = {
        name.value: (fit.posterior.probabilities(test.items, num_samples=samples).cpu(), test.labels)
        for name, fit in fitted.items()
    }
    ece = {r["algorithm"]: r["ece"] for r in tested if r["ece"] is not None}
    return reliability_diagram(predictions, styles=[plots.style(name) for name in predictions], ece=ece, about=about)


def entropy(
    fitted: Mapping[Algorithm, Fit],
    test: LabelledItems,
    outside: LabelledItems,
    samples: int,
    tested: Sequence[BnnRecord],
    *,
    about: str,
) -> Figure:
    """Predictive entropy of every algorithm, by ``samples`` draws, on test items and on others, with the AUROC of the table."""
    entropies = {
        name.value: tuple(fit.posterior.entropy(part.items, num_samples=samples).cpu() for part in (test, outside))
        for name, fit in fitted.items()
    }
    auroc = {r["algorithm"]: r["auroc"] for r in tested if "auroc" in r}
    return plots.predictive_entropy(entropies, test.num_classes, auroc, about=about)  # type: ignore[arg-type]


def own_epochs(fitted: Mapping[Algorithm, Fit], run: RunFolder) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Logged scalars of each algorithm's final training over the epochs of a posterior, not of the loop."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, fit in fitted.items():
        stage = stage_name(name, fit.beta)
        curves[name.value] = {}
        for scalars in read_history(run, [start_of(stage), stage]).values():
            epoch_at = dict(zip(*scalars.get("own_epoch", ([], [])), strict=True))
            for key, (steps, values) in scalars.items():
                if key.startswith(("test/", "val/")):  # val/ in runs of version 0.3 and earlier
                    epochs, before = curves[name.value].setdefault(key.replace("val/", "test/"), ([], []))
                    epochs += [epoch_at[step] for step in steps]
                    before += values
    return curves
