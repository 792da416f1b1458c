"""From trained students to records of ``metrics.json`` and the table a VID run ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

from torch import nn

from data.items import LabelledItems
from inference.evaluation.metrics import predictive_scores
from inference.evaluation.tables import Column, number
from inference.evaluation.tables import format_table as format_columns
from inference.vid.options import Size
from inference.vid.vid import VID
from models.networks.layers import embed

GAIN_FROM = 1_000  # items that the decoding gain is estimated from


class VidRecord(TypedDict):
    """One network's scores: an entry of ``results`` in ``metrics.json``.

    Attributes:
        split: what is scored: ``test``, or ``val`` where a strength is being chosen.
        method: of the student, or ``teacher``.
        per_class: images per class, those without labels included; ``None``: the teacher's.
        labels: how many of them have labels; ``None``: all.
        run: repetition, from 0.
        strength: factor on every λ; ``None`` where the method has none.
        accuracy, ece: fractions.
        nll: nats per item.
        brier: 0 to 2.
        mutual_information: teacher layer -> decoding gain, nats per item: the bound on I(t; s) plus a constant of the teacher
            (see :class:`~models.distillation.information.DecodingGain`); ``None`` for methods without decoders.
    """

    split: str
    method: str
    per_class: int | None
    labels: int | None
    run: int
    strength: float | None
    accuracy: float
    nll: float
    ece: float
    brier: float
    mutual_information: dict[str, float] | None


class Group(NamedTuple):
    """What the runs of a table's row share; see :class:`VidRecord`."""

    per_class: int | None
    labels: int | None
    method: str


def make_record(
    vid: VID, scored: LabelledItems, name: str, size: Size, images: int, run: int, *, strength: float | None, split: str
) -> VidRecord:
    """The record of one student.

    Args:
        run: its repetition.
        split: the name of the scored split.
        scored: what the scores are of.
        images: how many the student has in all.
        strength: ``None`` where the method has no λ.
    """
    part = scored.choose(min(GAIN_FROM, len(scored)), 0)
    return {
        "split": split,
        "method": name,
        "per_class": size.per_class or round(images / scored.num_classes),
        "labels": size.labels,
        "run": run,
        "strength": strength,
        **vid.scores(scored),  # type: ignore[typeddict-item]
        "mutual_information": vid.decoding_gain(part.items) or None,
    }


def teacher_record(teacher: nn.Module, test: LabelledItems) -> VidRecord | None:
    """The teacher on its own data set's test images; ``None`` where its classes are others."""
    outputs = embed(teacher, test.items)
    if outputs.shape[-1] != test.num_classes:
        return None
    record: VidRecord = {
        "split": "test",
        "method": "teacher",
        "per_class": None,
        "labels": None,
        "run": 0,
        "strength": None,
        **predictive_scores(outputs.softmax(-1), test.labels),  # type: ignore[typeddict-item]
        "mutual_information": None,
    }
    return record


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of ``values`` (``None`` for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_accuracy(records: Iterable[VidRecord]) -> str:
    """Accuracy in % over runs: mean ± standard deviation."""
    mean, spread = mean_and_spread([100 * record["accuracy"] for record in records])
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def group_runs(records: Iterable[VidRecord]) -> dict[Group, list[VidRecord]]:
    """Test records of students by group, smallest first, methods in their order."""
    rows = [r for r in records if r["split"] == "test" and r["method"] != "teacher"]
    order = {method: i for i, method in enumerate(dict.fromkeys(r["method"] for r in rows))}
    groups: dict[Group, list[VidRecord]] = {}
    for r in sorted(rows, key=lambda r: (r["per_class"] or 0, r["labels"] or 0, order[r["method"]])):
        groups.setdefault(Group(r["per_class"], r["labels"], r["method"]), []).append(r)
    return groups


Row = tuple[Group, list[VidRecord]]


def mean_gains(runs: Sequence[VidRecord]) -> str:
    """Decoding gains of the teacher's layers, first to last, means over runs."""
    gains = [r["mutual_information"] or {} for r in runs]
    return ", ".join(f"{statistics.fmean(gain[layer] for gain in gains):.0f}" for layer in gains[0]) or "-"


COLUMNS: tuple[Column, ...] = (
    Column("method", lambda row: row[0].method, left=True),
    Column("images per class", lambda row: number(row[0].per_class, "g")),
    Column("labels", lambda row: "all" if row[0].labels is None else str(row[0].labels)),
    Column("λ ×", lambda row: number(row[1][0]["strength"], "g")),
    Column("accuracy %", lambda row: format_accuracy(row[1])),
    Column("NLL", lambda row: number(statistics.fmean(r["nll"] for r in row[1]))),
    Column("ECE %", lambda row: number(statistics.fmean(r["ece"] for r in row[1]), ".1f", factor=100)),
    Column("gain, nats per layer", lambda row: mean_gains(row[1])),
)
NOTES = """±: standard deviation over runs; NLL in nats per item; gain: how much better q(t given s) knows each teacher layer,
first to last, than the best Gaussian that ignores the student: the bound on I(t; s) plus a constant of the teacher"""
"""What the table's columns mean."""


def format_table(records: Sequence[VidRecord]) -> str:
    """The closing table as text: means over runs."""
    teachers: list[Row] = [(Group(None, None, "teacher"), [r]) for r in records if r["method"] == "teacher"]
    return format_columns([*teachers, *group_runs(records).items()], COLUMNS)
