"""``python -m inference.diagnose``: is the posterior of a finished run right?"""

from __future__ import annotations

from inference.runs.beginning import begin

if __name__ == "__main__":
    begin()

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from data.errors import UserError
from inference.bnn.diagnosis import diagnose_networks
from inference.bnn.options import BnnOptions
from inference.diagnostics import plots
from inference.diagnostics.files import examine_files
from inference.diagnostics.findings import Diagnosis, Finding, format_findings
from inference.evaluation.figures import reliability_diagram
from inference.meta.diagnosis import diagnose_tasks
from inference.meta.options import SibOptions
from inference.meta.regression import PROBLEMS
from inference.meta.regression_diagnosis import diagnose_regression
from inference.runs.commands import flags_in_errors, notes, read_options, run_process
from inference.runs.files import sole_writer, write_json
from inference.runs.folder import RunFolder
from inference.runs.help import Example, Group
from inference.runs.options import HERE, Options, options_from_yaml
from inference.runs.study import draw_all
from inference.runs.values import PositiveInt, TwoOrMore

DESCRIPTION = """Is the posterior right? Simulation-based calibration, regret against exact Bayes or NUTS, the amortization gap,
PSIS k, calibration and coverage of a finished run; a table, a verdict for each posterior, pictures and a JSON file in
RUN/diagnostics. What is not looked at by default is said, with the option that does."""
EXAMPLES = (
    Example("--run RUN", "all that takes little time"),
    Example("--run RUN --nuts true --simulations 1000", "beside Hamiltonian Monte Carlo, and more closely"),
)
REGRESSION_TASKS, IMAGE_TASKS = 200, 100


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(Options):
    """Which run, how closely.

    Args:
        run: folder of a finished run.
        tasks: test tasks of all checks but simulation-based calibration; 200 of regression, 100 of images when not given.
        simulations: tasks, or data sets, of simulation-based calibration, drawn from the model itself.
        nuts: whether NUTS samples what the run did not: posteriors of image tasks with β = 1, and of small networks.
            Regression always has it where it is the reference.
    """

    run: str
    _evaluation: ClassVar[Group] = Group.EVALUATION
    tasks: TwoOrMore | None = None
    simulations: PositiveInt = 500
    nuts: bool = False


@flags_in_errors(DiagnoseOptions)
def main(arguments: Sequence[str] | None = None) -> list[Finding]:
    """Run the command; returns what was found, posterior by posterior."""
    options = read_options(DiagnoseOptions, "diagnose", DESCRIPTION, arguments, examples=EXAMPLES)
    run = RunFolder.existing(options.run)
    with notes():
        findings, remarks = find(run, options)
    folder = run.path / "diagnostics"
    content = {"command": "diagnose", "tasks": options.tasks, "simulations": options.simulations, "nuts": options.nuts}
    rows = [finding.row() for finding in findings]
    with sole_writer(folder):
        written = write_json(folder / "diagnostics.json", content | {"results": rows, "remarks": remarks})
        drawn = draw_all(lambda: figures(findings), folder)
    print(f"\n{format_findings(findings)}\n")
    print("\n".join([*(finding.verdict for finding in findings), *remarks]))
    print(f"\nresults: {written}")
    for plot in drawn:
        print(f"plot:    {plot}")
    return findings


def find(run: RunFolder, options: DiagnoseOptions) -> Diagnosis:
    """The checks that the run's kind has, and what was left out; of kinds without checks of their own, those that its
    posteriors' files allow.

    Raises:
        UserError: the run is not finished, or its files are missing or damaged.
    """
    if not run.metrics.exists():
        raise UserError(f"{run.path} is not finished: it has no metrics.json")
    made_by = run.results()
    command = made_by.get("command")
    if command == "svi_sib" and made_by.get("dataset") in PROBLEMS:
        own = options_from_yaml(SibOptions, run.read_config(), run.config, HERE)
        if own.data not in PROBLEMS:
            raise UserError(f"{run.path} holds files of two runs: config.yaml is of {own.data}, metrics.json is not")
        tasks = options.tasks or REGRESSION_TASKS
        return Diagnosis(diagnose_regression(run, own, tasks=tasks, simulations=options.simulations), [])
    if command == "svi_sib" and run.features.exists():
        found = diagnose_tasks(run, tasks=options.tasks or IMAGE_TASKS, nuts=options.nuts)
        return found._replace(findings=found.findings + examine_files(sorted(run.posteriors.glob("lwof-*.nc"))))
    files = sorted(run.posteriors.glob("*.nc"))
    if files and command == "svi_bnn":
        trained = options_from_yaml(BnnOptions, run.read_config(), run.config, HERE)
        return diagnose_networks(run, trained, simulations=options.simulations, nuts=options.nuts)
    if not files:
        raise UserError(f"{run.path} has no posteriors/*.nc to look at: runs of earlier versions wrote none, so run it again")
    return Diagnosis(examine_files(files), [])


def figures(findings: Sequence[Finding]) -> dict[str, Callable[[], Figure]]:
    """The pictures by name, each drawn when it is called."""
    calibrations = {f.name: f.calibration for f in findings if f.calibration is not None}
    levels = {f.name: f.levels for f in findings if f.levels is not None}
    classes = {f.name: (f.probabilities, f.labels) for f in findings if f.probabilities is not None and f.labels is not None}
    drawn: dict[str, Callable[[], Figure]] = {}
    if classes:
        drawn["reliability"] = lambda: reliability_diagram(classes)
    if calibrations:
        drawn["calibration"] = lambda: plots.rank_panels(calibrations)
    if any(f.regret is not None for f in findings):
        drawn["regret"] = lambda: plots.regret_dots(findings)
    if any(f.informed_losses is not None for f in findings):
        drawn["objective"] = lambda: plots.objective_bars(findings)
    if levels:
        drawn["coverage"] = lambda: plots.coverage_curves(levels)
    if any(f.psis_k is not None for f in findings):
        drawn["psis_k"] = lambda: plots.k_strips(findings)
    return drawn


if __name__ == "__main__":
    run_process(main)
