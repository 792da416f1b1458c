"""One run from its options to its last printed line, the same for every command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from data.errors import UserError
from inference.runs.board import final_scores, write_summary
from inference.runs.commands import notes, print_places, write_metrics
from inference.runs.files import no_room, write_atomically
from inference.runs.folder import RunFolder
from inference.runs.interruptions import working_in
from inference.runs.manifest import check_data
from inference.runs.options import RunOptions, options_to_yaml
from inference.runs.processes import agree, is_main, main_prints

Figures = Mapping[str, Callable[[], Figure]]
"""Name -> what draws it. Nothing is computed before the call, so a picture that fails costs itself alone."""

Options = TypeVar("Options", bound=RunOptions)
Data = TypeVar("Data")
Fitted = TypeVar("Fitted")


class Study(ABC, Generic[Options, Data, Fitted]):
    """Load, check, fit, evaluate, choose, write, draw, print: in that order, so that results are on disk before anything is
    drawn, and bad input leaves nothing behind.

    A command is a subclass that says what each step does. Only the main process evaluates and what follows it.

    Args:
        options: everything that defines the run.
    """

    command: ClassVar[str]
    """The module below ``inference``, which names run folders."""
    resumes: ClassVar[bool] = True
    """Whether a run can be continued with ``--resume``."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def load(self) -> Data:
        """The data, said in a line."""

    def check(self, data: Data) -> None:
        """Fail where data and options do not fit together.

        Raises:
            UserError: in one line.
        """

    @abstractmethod
    def fit(self, data: Data, run: RunFolder) -> Fitted:
        """Train everything in ``run``, or read back what is finished."""

    @abstractmethod
    def evaluate(self, data: Data, fitted: Fitted, run: RunFolder) -> Sequence[Any]:
        """All records, those of validation included."""

    def choose(self, records: Sequence[Any]) -> Sequence[Any]:
        """Mark the records of what validation chose."""
        return records

    def save(self, data: Data, fitted: Fitted, records: Sequence[Any], run: RunFolder) -> None:
        """Write what else belongs to the results, such as ``posterior.nc``."""

    @abstractmethod
    def figures(self, data: Data, fitted: Fitted, records: Sequence[Any], run: RunFolder) -> Figures:
        """The run's pictures by name."""

    @abstractmethod
    def report(self, data: Data, records: Sequence[Any]) -> str:
        """The closing text: table and notes."""

    def dataset(self, data: Data) -> str:
        """The data set's name in ``metrics.json``."""
        return self.options.data

    def who(self, row: Mapping[str, Any]) -> str | None:
        """Whose scores a ``row`` of ``metrics.json`` holds, in TensorBoard's tags; ``None`` where it is not of the table."""
        return str(row.get("variant") or row.get("algorithm") or row.get("method") or "")

    def run(self, run: RunFolder | None = None) -> RunFolder:
        """All steps, in a new run folder or the one to be resumed.

        Raises:
            UserError: bad options or data, or training that cannot go on.
        """
        if run is not None and not self.resumes:
            raise UserError("these runs take seconds and are not resumed: start a new one")
        with main_prints(), notes(), ExitStack() as work:
            if run is not None:
                work.enter_context(working_in(run))
            else:  # before data are read
                self.options.loop.check()
                if (out := self.options.out) is not None:
                    agree(lambda: RunFolder(out).check_new())
            data = self.load()
            self.check(data)
            if run is None:
                run = RunFolder.create(self.options.out, self.command, options_to_yaml(self.options))
                work.enter_context(working_in(run, new=True, resumes=self.resumes))
            begun = run
            agree(lambda: check_data(begun, data))
            print(f"run folder: {run.path}")
            fitted = self.fit(data, run)
            if is_main():
                self.finish(data, fitted, run)
        return run

    def finish(self, data: Data, fitted: Fitted, run: RunFolder) -> None:
        """From fitted models to results on disk, pictures and the printed table."""
        print("evaluating ...")
        with run.timed("evaluate"):
            records = self.choose(self.evaluate(data, fitted, run))
            self.save(data, fitted, records, run)
        self.write(data, records, run)
        with run.timed("plots"):
            plots = draw_all(lambda: self.figures(data, fitted, records, run), run.plots)
        self.write(data, records, run)  # again: the seconds of drawing are part of it
        write_summary(run, self.options, final_scores((self.who(row), row) for row in map(as_row, records)), plots)
        print(f"\n{self.report(data, records)}")
        print_places(run, plots)

    def write(self, data: Data, records: Sequence[Any], run: RunFolder) -> None:
        """``metrics.json``."""
        write_metrics(run, self.command, self.options, [as_row(record) for record in records], dataset=self.dataset(data))


def draw_all(figures: Callable[[], Figures], folder: Path) -> list[Path]:
    """Draw and save pictures; one that fails costs itself and a printed line, never the run, but for a full disk."""
    paths = []
    try:
        named = figures()
    except Exception as error:  # whatever it is, results are on disk
        if no_room(error):
            raise
        print(cannot_draw("anything", error))
        return []
    for name, draw in named.items():
        try:
            paths.append(save_figure(draw(), folder / f"{name}.png"))
        except Exception as error:
            if no_room(error):
                raise
            print(cannot_draw(name, error))
    return paths


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG atomically and close the figure."""

    try:
        return write_atomically(path, lambda file: figure.savefig(file, dpi=150))
    finally:
        plt.close(figure)


def cannot_draw(name: str, error: Exception) -> str:
    """One line about a picture that there is not."""
    return f"plot:    could not draw {name}: {type(error).__name__}: {' '.join(str(error).split())}"


def as_row(record: Any) -> dict[str, Any]:
    """A record, be it a mapping or a dataclass, as a row of ``metrics.json``."""
    return asdict(record) if is_dataclass(record) and not isinstance(record, type) else dict(record)
