"""``python -m inference.svi_vid``: distil a teacher into students by several methods, compare them, draw."""

from __future__ import annotations

from collections.abc import Sequence

from inference.commands import build_options, make_parser, options_from_yaml, options_to_yaml, run_command
from inference.files import RunFolder, write_json
from inference.vid.draw import draw_run
from inference.vid.fit import Sources, Study, check
from inference.vid.options import VidOptions
from inference.vid.report import format_table, teacher_record

DESCRIPTION = """Variational information distillation beside other ways to teach a student.
Without arguments it trains a small teacher on embedded digits and compares plain student, KD and VID in about two minutes."""


def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    values = make_parser(VidOptions, "svi_vid", DESCRIPTION).parse_args(arguments)
    run = RunFolder.existing(values.resume) if values.resume else None
    options = options_from_yaml(VidOptions, run.config.read_text(), run.config) if run else build_options(VidOptions, values)
    print(f"loading {options.data} ...")
    data = Sources.load(options)
    check(options, data)
    run = run or RunFolder.create(options.out, "svi_vid", options_to_yaml(options))
    print(f"run folder: {run.path}")
    study = Study.prepare(options, data, run)
    fitted, records = study.fit_all()
    taught = teacher_record(study.teacher, data.source.test)
    records = ([taught] if taught else []) + records
    with run.timed("plots"):
        plots = draw_run(options, fitted, data.target.test, records, run)
    content = {"command": "svi_vid", "dataset": options.data, "seed": options.seed, "seconds": run.seconds()}
    write_json(run.metrics, content | {"results": records})
    print(f"\n{options.data}, {options.teacher} to {options.student}, {options.runs} runs\n{format_table(records)}\n")
    print("±: standard deviation over runs; NLL in nats an item; I(t; s): bound for each teacher layer, first to last, with")
    print("the entropy of a Gaussian of the layer's variances in place of its own")
    print(f"results: {run.metrics}")
    for plot in plots:
        print(f"plot:    {plot}")
    return run


if __name__ == "__main__":
    run_command(main)
