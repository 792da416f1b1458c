"""``python -m inference.svi_vid``: distil a teacher into students by several methods, compare them, draw."""

from __future__ import annotations

from inference.runs.beginning import begin

if __name__ == "__main__":
    begin()

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from inference.evaluation.arviz import save_posteriors
from inference.evaluation.tables import plural
from inference.runs.commands import flags_in_errors, read_command, run_process
from inference.runs.folder import RunFolder
from inference.runs.help import Example
from inference.runs.study import Figures, Study
from inference.vid.draw import run_figures
from inference.vid.fit import Fitted, check
from inference.vid.fit import Study as Students
from inference.vid.options import Size, VidOptions
from inference.vid.report import NOTES, VidRecord, format_table, teacher_record
from inference.vid.settings import stage_name
from inference.vid.sources import Sources, choose_items
from inference.vid.vid import VID

DESCRIPTION = """Variational information distillation beside other ways to teach a student.
Without arguments it trains a small teacher on embedded letters and compares student, KD and VID in about two minutes."""
EXAMPLES = (
    Example("", "embedded letters"),
    Example(
        "--data cifar10 --root my_data --teacher wrn-40-2 --student wrn-16-1 --per-class all --labels 100 --methods kd,vid",
        "all images, few of them with labels",
    ),
    Example("--methods kd,vid,kd+vid --strength 0.3,1,3", "a sum of methods, and factors that validation data choose from"),
)
SAVED_ITEMS = 100  # test items that a saved posterior predicts


class Taught(NamedTuple):
    """What a run has trained.

    Attributes:
        teacher: of all students.
        students: those of the first run.
        records: of all runs, validation and test.
    """

    teacher: nn.Module
    students: Fitted
    records: list[VidRecord]


class VidStudy(Study[VidOptions, Sources, Taught]):
    """A run of ``svi_vid``."""

    command = "svi_vid"

    def load(self) -> Sources:
        print(f"loading {self.options.data} ...")
        return Sources.load(self.options)

    def check(self, data: Sources) -> None:
        self.networks = check(self.options, data)

    def fit(self, data: Sources, run: RunFolder) -> Taught:
        students = Students.prepare(self.options, data, self.networks, run)
        return Taught(students.networks.teacher, *students.fit_all())

    def evaluate(self, data: Sources, fitted: Taught, run: RunFolder) -> list[VidRecord]:
        taught = teacher_record(fitted.teacher, data.target.test) if data.source is data.target else None
        return [*([taught] if taught else []), *fitted.records]

    def save(self, data: Sources, fitted: Taught, records: Sequence[VidRecord], run: RunFolder) -> None:
        """ArviZ data of every student of the first run; ``posterior.nc`` is that of the last method with the most images."""
        options, test = self.options, data.target.test
        held_out = test.choose(min(SAVED_ITEMS, len(test)), options.seed)

        def content(vid: VID, size: Size) -> Any:
            train = choose_items(data.target.train, size, seed=options.seed).labelled
            known: dict[str, Any] = {
                "command": self.command,
                "method": vid.method,
                "dataset": options.data,
                "seed": options.seed,
            }
            known |= {"per_class": size.per_class, "labels": size.labels, "strength": vid.strength}
            return vid.to_arviz(held_out.items, held_out.labels, train=train, seed=options.seed, attributes=known)

        made = {stage_name(name, size): partial(content, vid, size) for (name, size), vid in fitted.students.items()}
        save_posteriors(made, list(made)[-1], run)

    def who(self, row: Mapping[str, Any]) -> str:
        """The student as its logs are named, or the teacher."""
        if row["method"] == "teacher":
            return "teacher"
        return f"{stage_name(row['method'], Size(row['per_class'], row['labels']))}-run{row['run']}"

    def figures(self, data: Sources, fitted: Taught, records: Sequence[VidRecord], run: RunFolder) -> Figures:
        about = f"{self.options.data}, {self.options.teacher} teaches {self.options.student}"
        return run_figures(fitted.students, data.target.test, records, run, seed=self.options.seed, about=about)

    def report(self, data: Sources, records: Sequence[VidRecord]) -> str:
        options = self.options
        title = f"{options.data}, {options.teacher} to {options.student}, {plural(options.runs, 'run')}"
        return f"{title}\n{format_table(records)}\n\n{NOTES}"


@flags_in_errors(VidOptions)
def main(arguments: Sequence[str] | None = None) -> RunFolder:
    """Run the command; returns the run folder."""
    options, run = read_command(VidOptions, "svi_vid", DESCRIPTION, arguments, examples=EXAMPLES)
    return VidStudy(options).run(run)


if __name__ == "__main__":
    run_process(main)
