"""``python -m inference.svi_bnn``: fit Bayesian neural networks by several algorithms, compare them, draw."""

from __future__ import annotations

from inference.runs.beginning import begin

if __name__ == "__main__":
    begin()

from collections.abc import Sequence

from data.catalogue import load_supervised
from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from inference.bnn.algorithms import Algorithm
from inference.bnn.draw import figures
from inference.bnn.fit import fit_run, make_problem, split_validation
from inference.bnn.fitting import Fit, prepare
from inference.bnn.options import BnnOptions
from inference.bnn.report import BnnRecord, final_records, format_agreement, format_table, legend, outside_items, save_fits
from inference.runs.checks import check_network_memory
from inference.runs.commands import flags_in_errors, read_command, run_process
from inference.runs.folder import RunFolder
from inference.runs.help import Example
from inference.runs.study import Figures, Study
from models.networks.pretrained import size_to_load

DESCRIPTION = """Bayesian neural networks by rate and distortion: vanilla, fixed-prior, β-BNN and online β-BNN, beside
networks with random last layers, low-rank Gaussians, Laplace's approximation, SWAG and Hamiltonian Monte Carlo.
Without arguments it compares them on embedded digits in about two minutes."""
EXAMPLES = (
    Example("", "embedded digits"),
    Example("--data mnist --root my_data --hidden 400,400", "MNIST, in torchvision's files"),
    Example("--algorithms vanilla,last-layer,low-rank,laplace,swag", "richer posteriors"),
    Example(
        "--data curve --hidden 20 --epochs 600 --batch 120 --learning-rate 0.02 --scale-speed 1", "a regression of one input"
    ),
)

Fits = tuple[dict[Algorithm, Fit], list[BnnRecord]]
"""Algorithm -> fitted at its best β, and the records of validation."""


class BnnStudy(Study[BnnOptions, SupervisedData, Fits]):
    """A run of ``svi_bnn``."""

    command = "svi_bnn"

    def load(self) -> SupervisedData:
        options = self.options
        print(f"loading {options.data} ...")
        size = size_to_load(options.image_size, options.network, options.network_weights)
        return load_supervised(options.data, options.root, image_size=size, seed=options.seed)

    def check(self, data: SupervisedData) -> None:
        """Fail where data and options do not fit together.

        Raises:
            UserError: see :func:`~inference.bnn.fitting.prepare`.
        """
        options = self.options
        if options.likelihood == "categorical" and not data.is_classification:
            raise UserError(f"`data={options.data}` has real targets: `likelihood=gaussian`")
        if options.likelihood in ("gaussian", "bernoulli", "poisson") and data.is_classification:
            raise UserError(f"`data={options.data}` has classes: `likelihood=categorical`")
        outputs = data.train.num_classes or 1
        check_network_memory(options.network, data.item_shape, outputs, options.batch, options.loop, hidden=options.widths)
        problem = make_problem(options, data)
        for algorithm in options.algorithms:
            betas = algorithm.betas(options.betas)
            prepare(problem.network, problem.train, problem.recipe(algorithm, betas[0], options.fit))
            if len(betas) > 1:
                kept, _ = split_validation(problem.train, options.validation, options.seed)
                options.fit.items_per_epoch(algorithm, len(kept))

    def fit(self, data: SupervisedData, run: RunFolder) -> Fits:
        return fit_run(self.options, data, run)

    def evaluate(self, data: SupervisedData, fitted: Fits, run: RunFolder) -> list[BnnRecord]:
        options, (networks, sweep) = self.options, fitted
        tested = final_records(networks, self.train(data), data.test, outside(data), samples=options.samples, seed=options.seed)
        return [*sweep, *tested]

    def save(self, data: SupervisedData, fitted: Fits, records: Sequence[BnnRecord], run: RunFolder) -> None:
        save_fits(fitted[0], self.train(data), data, run, seed=self.options.seed)

    def figures(self, data: SupervisedData, fitted: Fits, records: Sequence[BnnRecord], run: RunFolder) -> Figures:
        options, networks = self.options, fitted[0]
        shown = {"train": self.train(data), "samples": options.samples, "seed": options.seed}
        return figures(networks, data, outside(data), records, run, **shown)  # type: ignore[arg-type]

    def report(self, data: SupervisedData, records: Sequence[BnnRecord]) -> str:
        tested = [record for record in records if record["split"] == "test"]
        title = f"{self.options.data}, {self.options.network}, {len(self.train(data))} training items"
        closing = f"{title}\n{format_table(tested)}\n\n{legend(tested)}"
        return "\n\n".join(filter(None, (closing, format_agreement(tested))))

    def train(self, data: SupervisedData) -> LabelledItems:
        """The training items in use."""
        return data.train.choose(self.options.train_size, self.options.seed)


def outside(data: SupervisedData) -> LabelledItems | None:
    """Items of another kind, for the predictive entropy."""
    return outside_items(data) if data.is_classification else None


@flags_in_errors(BnnOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(BnnOptions, "svi_bnn", DESCRIPTION, arguments, examples=EXAMPLES)
    return BnnStudy(options).run(run)


if __name__ == "__main__":
    run_process(main)
