"""``python -m inference.svi_vid``: distil a teacher into students by several methods, compare them, draw."""

from __future__ import annotations

from collections.abc import Sequence

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
from inference.vid.draw import run_figures
from inference.vid.fit import Study, check
from inference.vid.options import VidOptions
from inference.vid.report import NOTES, format_table, teacher_record
from inference.vid.sources import Sources

DESCRIPTION = """Variational information distillation beside other ways to teach a student.
Without arguments it trains a small teacher on embedded letters and compares student, KD and VID in under three minutes."""


@flags_in_errors(VidOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(VidOptions, "svi_vid", DESCRIPTION, arguments)
    print(f"loading {options.data} ...")
    data = Sources.load(options)
    networks = check(options, data)
    run = run or RunFolder.create(options.out, "svi_vid", options_to_yaml(options))
    print(f"run folder: {run.path}")
    study = Study.prepare(options, data, networks, run)
    fitted, records = study.fit_all()
    if data.source is data.target and (taught := teacher_record(study.networks.teacher, data.target.test)):
        records = [taught, *records]
    write_metrics(run, "svi_vid", options, [dict(record) for record in records])
    with run.timed("plots"):
        figures = run_figures(fitted, data.target.test, records, run, seed=options.seed)
        plots = [save_figure(draw(), run.plots / f"{name}.png") for name, draw in figures.items()]
    print(f"\n{options.data}, {options.teacher} to {options.student}, {options.runs} runs\n{format_table(records)}\n")
    print(NOTES)
    print_places(run, plots)
    return run


if __name__ == "__main__":
    run_command(main)
