"""Active learning with the methods of a finished run of ``svi_meta``: labels that are chosen, against labels at random.

    python -m benchmarks.active_learning RUN [--tasks 400] [--labels 8] [--pool 4] [--methods conjugate,llama]

RUN is a run on regression or on features (of images, those that the run kept). Regression: a pool of 30 points, of which 2 are
labelled at first, and 20 queries. Classes: one label of each at first, ``--pool`` items of each without, and the run's own
queries. Then labels are asked for one by one; all acquisitions have the same tasks, the same first labels and the same draws.
Gains are differences on the same tasks. Writes ``active.json`` and ``plots/active_*.png`` in RUN and prints the table. On
classes ``svi_meta --protocols active`` says the same in a run's own table, of as many items as its tasks have.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.episodes import Episode, EpisodeSampler
from data.seeding import mix_seed
from inference.active import Acquisition, acquisitions_of, curves, first_known
from inference.evaluation.evaluate import batches, readings
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.predictive import place_of, predictive
from inference.evaluation.tables import align
from inference.meta.active import FIRST_LABELS
from inference.meta.active_pictures import Curve, worth_of_labels
from inference.meta.comparison_plots import named
from inference.meta.family_options import MetaOptions
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import map_items
from inference.meta.regression_comparison import fit_variant
from inference.meta.regression_fits import raw_tasks
from inference.meta.regression_options import DEFAULT, RegressionOptions
from inference.meta.settings import NETWORK
from inference.runs.files import write_json
from inference.runs.flat_yaml import read_yaml
from inference.runs.folder import RunFolder
from inference.runs.options import options_from_yaml
from inference.runs.study import draw_all
from inference.runs.tensors import dataset_name, load_features

POINTS, FIRST, QUERIES = 30, 2, 20
AT_ONCE = 50


class Programs(NamedTuple):
    """A method, the tasks that it sees, and how many labels these have at first."""

    name: str
    model: nn.Module
    guide: nn.Module
    pools: Iterator[Episode]
    first: int


def of_regression(run: RunFolder, options: RegressionOptions, tasks: int) -> Iterator[Programs]:
    """The methods of a run on regression."""
    problem = replace(options.problem, shot=POINTS)
    for variant in options.variants():
        fit = fit_variant(variant, options, run)

        def pools(fit: Any = fit) -> Iterator[Episode]:
            for start in range(0, tasks, AT_ONCE):
                count, seed = min(AT_ONCE, tasks - start), mix_seed(TEST_SEED, start)
                drawn = raw_tasks(problem, count, queries=QUERIES, seed=seed, split="test")
                yield fit.embed(drawn)

        yield Programs(named(variant), fit.model, fit.guide, pools(), FIRST)


def of_classes(run: RunFolder, options: MetaOptions, tasks: int, pool: int) -> Iterator[Programs]:
    """The methods of a run on images or features, but those that adapt a network."""
    part, spec = load_features(run.features)["test"], options.spec(shot=1 + pool, imbalance=None)
    for variant in options.variants():
        if variant.predictor == NETWORK:
            continue
        learner = FittedLearner.load(run, variant.name)
        *_, guide = readings(learner.guide).values()
        sampler = EpisodeSampler(map_items(learner.space, part), spec, split="test split")
        device, dtype = place_of(guide, learner.model)
        pools = (episode.to(device, dtype=dtype) for episode in batches(sampler, tasks, mix_seed(TEST_SEED)))
        yield Programs(named(variant), learner.model, guide, pools, 1)


def measured(programs: Programs, labels: int) -> dict[Acquisition, dict[str, Tensor]]:
    """Curves of a method, ``[labels + 1, tasks]``, of all that can be asked for by it."""
    found: list[dict[Acquisition, dict[str, Tensor]]] = []
    wanted: tuple[Acquisition, ...] = ()
    for number, pool in enumerate(programs.pools):
        if not wanted:
            wanted = acquisitions_of(predictive(programs.model, programs.guide, pool))
        known = first_known(pool, programs.first, seed=mix_seed(TEST_SEED, number, FIRST_LABELS))
        found.append(curves(programs.model, programs.guide, pool, known, wanted, labels=labels, seed=number))
    return {a: {m: torch.cat([part[a][m] for part in found], dim=1) for m in found[0][a]} for a in wanted}


def curve_of(values: Tensor) -> Curve:
    """Means and intervals over tasks, of ``[turns + 1, tasks]``."""
    return Curve(values.mean(-1).tolist(), [confidence_interval(turn) for turn in values])


def rows_of(name: str, asked: dict[Acquisition, dict[str, Tensor]], measure: str) -> Iterator[dict[str, Any]]:
    """Rows of ``active.json``: means, intervals and paired gains over random, turn by turn; positive gains are better."""
    better = 1 if measure == "accuracy" else -1
    for acquisition, curve in asked.items():
        values = curve[measure]
        gain = better * (values - asked[Acquisition.RANDOM][measure])
        yield {
            "method": name,
            "acquisition": acquisition.value,
            "measure": measure,
            "mean": values.mean(-1).tolist(),
            "ci95": [confidence_interval(v) for v in values],
            "gain": gain.mean(-1).tolist(),
            "gain_ci95": [confidence_interval(v) for v in gain],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run of svi_meta")
    parser.add_argument("--tasks", type=int, default=400, help="test tasks")
    parser.add_argument("--labels", type=int, default=8, help="how many are asked for, one by one")
    parser.add_argument("--pool", type=int, default=4, help="items of each class without a label at first; of classes alone")
    parser.add_argument("--methods", help="those of the run alone that are named here, separated by commas")
    given = parser.parse_args(arguments)
    run = RunFolder.existing(given.run)
    text = run.read_config()
    regression = read_yaml(text)["data"] in DEFAULT
    kind: Any = RegressionOptions if regression else MetaOptions
    changed = {"methods": given.methods} if given.methods else {}
    options = options_from_yaml(kind, text, run.config, changed)
    made = of_regression(run, options, given.tasks) if regression else of_classes(run, options, given.tasks, given.pool)
    kept: dict[str, dict[Acquisition, dict[str, Tensor]]] = {}
    rows: list[dict[str, Any]] = []
    for programs in made:
        kept[programs.name] = asked = measured(programs, given.labels)
        for measure in asked[Acquisition.RANDOM]:
            rows += rows_of(programs.name, asked, measure)
        print(f"{programs.name} ...", flush=True)
    print(table(rows, given.labels))
    write_json(run.path / "active.json", {"tasks": given.tasks, "labels": given.labels, "results": rows})
    measure, factor, words = ("mse", 1.0, "mean squared error") if regression else ("accuracy", 100.0, "test accuracy (%)")
    picked = {name: {a: curve_of(curve[measure]) for a, curve in asked.items()} for name, asked in kept.items()}
    known = f"{POINTS} points" if regression else f"{1 + given.pool} items per class, {options.way}-way"
    about = f"{options.data if regression else dataset_name(run.features)}, a pool of {known}, {given.tasks} test tasks"

    def drawn() -> dict[str, Any]:
        how: dict[str, Any] = {"factor": factor, "log": regression, "about": about}
        return {f"active_{measure}": lambda: worth_of_labels(picked, words, **how)}

    for plot in draw_all(drawn, run.plots):
        print(f"plot: {plot}")


def table(rows: Sequence[dict[str, Any]], labels: int) -> str:
    """After half of the labels and after all of them: means, and gains over random."""
    lines = [
        ["method", "asked for", "measure", *(f"{word} {n}" for n in (labels // 2, labels) for word in ("after", "gain at"))]
    ]
    for row in rows:
        cells = [row["method"], row["acquisition"], row["measure"]]
        factor, digits = (100, 2) if row["measure"] == "accuracy" else (1, 3)
        for n in (labels // 2, labels):
            cells.append(f"{factor * row['mean'][n]:.{digits}f} ± {factor * row['ci95'][n]:.{digits}f}")
            gain = f"{factor * row['gain'][n]:+.{digits}f} ± {factor * row['gain_ci95'][n]:.{digits}f}"
            cells.append("-" if row["acquisition"] == Acquisition.RANDOM else gain)
        lines.append(cells)
    return align(lines)


if __name__ == "__main__":
    main()
