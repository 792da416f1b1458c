"""``python -m inference.svi_vid``: distil a teacher into students by several methods, compare them, draw."""

from __future__ import annotations

from collections.abc import Sequence

from inference.runs.commands import (
    flags_in_errors,
    options_to_yaml,
    print_places,
    read_command,
    run_command,
    write_metrics,
)
from inference.runs.folder import RunFolder
from inference.vid.draw import draw_run
from inference.vid.fit import Sources, Study, check
from inference.vid.options import VidOptions
from inference.vid.report import format_table, teacher_record

DESCRIPTION = """Variational information distillation beside other ways to teach a student.
Without arguments it trains a small teacher on embedded letters and compares student, KD and VID in under three minutes."""


@flags_in_errors(VidOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(VidOptions, "svi_vid", DESCRIPTION, arguments)
    print(f"loading {options.data} ...")
    data = Sources.load(options)
    check(options, data)
    run = run or RunFolder.create(options.out, "svi_vid", options_to_yaml(options))
    print(f"run folder: {run.path}")
    study = Study.prepare(options, data, run)
    fitted, records = study.fit_all()
    if data.source is data.target and (taught := teacher_record(study.teacher, data.target.test)):
        records = [taught, *records]
    with run.timed("plots"):
        plots = draw_run(options, fitted, data.target.test, records, run)
    write_metrics(run, "svi_vid", options, records)
    print(f"\n{options.data}, {options.teacher} to {options.student}, {options.runs} runs\n{format_table(records)}\n")
    print("±: standard deviation over runs; NLL in nats an item; I(t; s): bound for each teacher layer, first to last, with")
    print("the entropy of a Gaussian of the layer's variances in place of its own")
    print_places(run, plots)
    return run


if __name__ == "__main__":
    run_command(main)
