"""``python -m inference.svi_bnn``: fit Bayesian neural networks by four algorithms, compare them, draw."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from data.catalogue import load_supervised
from data.errors import UserError
from data.items import SupervisedData
from inference.bnn.bnn import prepare
from inference.bnn.draw import figures
from inference.bnn.fit import fit_run, make_problem, split_validation
from inference.bnn.options import BnnOptions
from inference.bnn.report import final_records, format_table, legend, outside_items, save_posteriors
from inference.evaluation.figures import save_figure
from inference.runs.commands import (
    flags_in_errors,
    options_to_yaml,
    print_places,
    read_command,
    run_command,
    write_metrics,
)
from inference.runs.folder import RunFolder

DESCRIPTION = """Bayesian neural networks by rate and distortion: vanilla, fixed-prior, β-BNN and online β-BNN.
Without arguments it compares them on embedded digits in about two minutes."""


@flags_in_errors(BnnOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(BnnOptions, "svi_bnn", DESCRIPTION, arguments)
    print(f"loading {options.data} ...")
    data = load_supervised(options.data, options.root, image_size=options.image_size, seed=options.seed)
    check(options, data)
    run = run or RunFolder.create(options.out, "svi_bnn", options_to_yaml(options))
    print(f"run folder: {run.path}")
    fitted, sweep = fit_run(options, data, run)
    outside = outside_items(data) if data.is_classification else None
    train = data.train.choose(options.train_size, options.seed)
    print("evaluating ...")
    with run.timed("evaluate"):
        records = final_records(fitted, train, data.test, outside, samples=options.samples, seed=options.seed)
        save_posteriors(fitted, train, data, run, seed=options.seed)
    write_metrics(run, "svi_bnn", options, [dict(record) for record in sweep + records])
    with run.timed("plots"):
        plots = draw(figures(fitted, data, outside, sweep, run, train=train, samples=options.samples, seed=options.seed), run)
    print(f"\n{options.data}, {options.network}, {len(train)} training items\n{format_table(records)}\n")
    print(legend(records))
    print_places(run, plots)
    return run


def draw(drawn: Mapping[str, Callable[[], Figure]], run: RunFolder) -> list[Path]:
    """Draw and save every picture; one that fails costs itself and a line."""
    paths = []
    for name, make in drawn.items():
        try:
            paths.append(save_figure(make(), run.plots / f"{name}.png"))
        except Exception as error:
            print(f"no plot {name}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return paths


def check(options: BnnOptions, data: SupervisedData) -> None:
    """Fail before any work where data and options do not fit together.

    Raises:
        UserError: see :func:`~inference.bnn.bnn.prepare`.
    """
    if options.likelihood == "categorical" and not data.is_classification:
        raise UserError(f"--data {options.data} has real targets: --likelihood gaussian")
    if options.likelihood in ("gaussian", "bernoulli", "poisson") and data.is_classification:
        raise UserError(f"--data {options.data} has classes: --likelihood categorical")
    problem = make_problem(options, data)
    for algorithm in options.algorithms:
        betas = algorithm.betas(options.betas)
        prepare(problem.network, problem.train, problem.recipe(algorithm, betas[0], options.fit))
        if len(betas) > 1:
            kept, _ = split_validation(problem.train, options.validation, options.seed)
            options.fit.items_per_epoch(algorithm, len(kept))


if __name__ == "__main__":
    run_command(main)
