"""``python -m inference.svi_vid``: distil a teacher into students by several methods, compare them, draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from inference.runs.commands import flags_in_errors, read_command, run_command
from inference.runs.folder import RunFolder
from inference.runs.study import Figures, Study
from inference.vid.draw import figures
from inference.vid.fit import Fitted, Sources, check
from inference.vid.fit import Study as Students
from inference.vid.options import VidOptions
from inference.vid.report import Record, format_table, teacher_record

DESCRIPTION = """Variational information distillation beside other ways to teach a student.
Without arguments it trains a small teacher on embedded letters and compares student, KD and VID in under three minutes."""
NOTES = """±: standard deviation over runs; NLL in nats an item; I(t; s): bound for each teacher layer, first to last, with
the entropy of a Gaussian of the layer's variances in place of its own"""


class Taught(NamedTuple):
    """What a run has trained.

    Attributes:
        teacher: of all students.
        students: those of the first run.
        records: of all runs, validation and test.
    """

    teacher: nn.Module
    students: Fitted
    records: list[Record]


class VidStudy(Study[VidOptions, Sources, Taught]):
    """A run of ``svi_vid``."""

    command = "svi_vid"

    def load(self) -> Sources:
        print(f"loading {self.options.data} ...")
        return Sources.load(self.options)

    def check(self, data: Sources) -> None:
        check(self.options, data)

    def fit(self, data: Sources, run: RunFolder) -> Taught:
        students = Students.prepare(self.options, data, run)
        return Taught(students.teacher, *students.fit_all())

    def evaluate(self, data: Sources, fitted: Taught, run: RunFolder) -> list[Record]:
        taught = teacher_record(fitted.teacher, data.target.test) if data.source is data.target else None
        return ([taught] if taught else []) + fitted.records

    def figures(self, data: Sources, fitted: Taught, records: Sequence[Mapping], run: RunFolder) -> Figures:
        return figures(self.options, fitted.students, data.target.test, records, run)

    def report(self, data: Sources, records: Sequence[Mapping]) -> str:
        options = self.options
        title = f"{options.data}, {options.teacher} to {options.student}, {options.runs} runs"
        return f"{title}\n{format_table([dict(record) for record in records])}\n\n{NOTES}"


@flags_in_errors(VidOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(VidOptions, "svi_vid", DESCRIPTION, arguments)
    return VidStudy(options).run(run)


if __name__ == "__main__":
    run_command(main)
