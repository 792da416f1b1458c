"""``python -m inference.svi_bnn``: fit Bayesian neural networks by four algorithms, compare them, draw."""

from __future__ import annotations

from collections.abc import Sequence

from data.catalogue import load_supervised
from data.errors import UserError
from data.items import SupervisedData
from inference.bnn.bnn import BNN, check_data, choose_likelihood
from inference.bnn.draw import draw_run
from inference.bnn.fit import fit_run, make_network
from inference.bnn.options import Algorithm, BnnOptions
from inference.bnn.report import final_records, format_table, outside_items
from inference.runs.commands import (
    flags_in_errors,
    options_to_yaml,
    print_places,
    read_command,
    run_command,
    write_metrics,
)
from inference.runs.folder import RunFolder, write_atomically
from inference.runs.options import split_commas
from models.bayesian.network import BayesianNetwork

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
    print("evaluating ...")
    with run.timed("evaluate"):
        records = final_records(options, fitted, data, outside)
    with run.timed("plots"):
        save_posterior(list(fitted.values())[-1], data, run)
        plots = draw_run(options, fitted, data, outside, sweep, run)
    write_metrics(run, "svi_bnn", options, sweep + records)
    print(f"\n{options.data}, {options.network}, {records[0]['items']} training items\n{format_table(records)}\n")
    print("β: chosen on validation data, where there are several; NLL in nats an item; rate and distortion in nats, all items")
    print("gap: training minus test accuracy; I(w; S): at most the rate for a fixed prior, estimated (≤ log K) for a mixture;")
    print("bound: on the expected gap, sqrt(I(w; S)/2n), a guarantee for fixed priors alone")
    print_places(run, plots)
    return run


def check(options: BnnOptions, data: SupervisedData) -> None:
    """Fail before any work where data and options do not fit together.

    Raises:
        UserError: see :func:`~inference.bnn.bnn.check_data`.
    """
    train = data.train.choose(options.train_size, options.seed)
    if options.likelihood == "categorical" and not data.is_classification:
        raise UserError(f"--data {options.data} has real targets: --likelihood gaussian")
    if options.likelihood in ("gaussian", "bernoulli", "poisson") and data.is_classification:
        raise UserError(f"--data {options.data} has classes: --likelihood categorical")
    likelihood = choose_likelihood(options.likelihood, train.labels)
    network = make_network(options, data)
    check_data(network, train, likelihood, options.bootstrap_size or 1)
    for algorithm in map(Algorithm, split_commas(options.algorithms)):
        try:
            BayesianNetwork(network, posteriors=options.plan(algorithm).at_once)
        except ValueError as error:
            raise UserError(f"{algorithm}: {error}") from None


def save_posterior(bnn: BNN, data: SupervisedData, run: RunFolder) -> None:
    """``posterior.nc``: ArviZ data of the last algorithm on a hundred test items."""
    posterior = bnn.posterior.to_arviz(data.test.items[:100], data.test.labels[:100], num_samples=100)
    write_atomically(run.posterior, lambda file: posterior.to_netcdf(str(file)))


if __name__ == "__main__":
    run_command(main)
