"""``python -m inference.svi_bnn``: fit Bayesian neural networks by four algorithms, compare them, draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.catalogue import load_supervised
from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from inference.bnn.bnn import BNN, check_data, choose_likelihood
from inference.bnn.draw import figures
from inference.bnn.fit import fit_run, make_network
from inference.bnn.options import Algorithm, BnnOptions
from inference.bnn.report import Record, final_records, format_table, outside_items
from inference.runs.commands import flags_in_errors, read_command, run_command
from inference.runs.folder import RunFolder, write_atomically
from inference.runs.study import Figures, Study
from models.bayesian.network import BayesianNetwork

DESCRIPTION = """Bayesian neural networks by rate and distortion: vanilla, fixed-prior, β-BNN and online β-BNN.
Without arguments it compares them on embedded digits in about two minutes."""
NOTES = """β: chosen on validation data, where there are several; NLL in nats an item; rate and distortion in nats, all items
gap: training minus test accuracy; I(w; S): at most the rate for a fixed prior, estimated (≤ log K) for a mixture;
bound: on the expected gap, sqrt(I(w; S)/2n), a guarantee for fixed priors alone"""

Fits = tuple[dict[Algorithm, BNN], list[Record]]
"""Algorithm -> fitted at its best β, and the records of validation."""


class BnnStudy(Study[BnnOptions, SupervisedData, Fits]):
    """A run of ``svi_bnn``."""

    command = "svi_bnn"

    def load(self) -> SupervisedData:
        options = self.options
        print(f"loading {options.data} ...")
        return load_supervised(options.data, options.root, image_size=options.image_size, seed=options.seed)

    def check(self, data: SupervisedData) -> None:
        check(self.options, data)

    def fit(self, data: SupervisedData, run: RunFolder) -> Fits:
        return fit_run(self.options, data, run)

    def evaluate(self, data: SupervisedData, fitted: Fits, run: RunFolder) -> list[Record]:
        networks, sweep = fitted
        return sweep + final_records(self.options, networks, data, outside(data))

    def save(self, data: SupervisedData, fitted: Fits, records: Sequence[Mapping], run: RunFolder) -> None:
        save_posterior(list(fitted[0].values())[-1], data, run)

    def figures(self, data: SupervisedData, fitted: Fits, records: Sequence[Mapping], run: RunFolder) -> Figures:
        return figures(self.options, fitted[0], data, outside(data), fitted[1], run)

    def report(self, data: SupervisedData, records: Sequence[Mapping]) -> str:
        tested = [dict(record) for record in records if record["split"] == "test"]
        title = f"{self.options.data}, {self.options.network}, {tested[0]['items']} training items"
        return f"{title}\n{format_table(tested)}\n\n{NOTES}"


@flags_in_errors(BnnOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(BnnOptions, "svi_bnn", DESCRIPTION, arguments)
    return BnnStudy(options).run(run)


def outside(data: SupervisedData) -> LabelledItems | None:
    """Items of another kind, for the predictive entropy."""
    return outside_items(data) if data.is_classification else None


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
    for algorithm in options.algorithms:
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
