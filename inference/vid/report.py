"""From trained students to records of ``metrics.json`` and the table a VID run ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from data.items import LabelledItems
from inference.evaluation.metrics import predictive_scores
from inference.evaluation.tables import align
from inference.vid.options import Size
from inference.vid.vid import VID
from models.networks.layers import embed

Record = dict[str, Any]
INFORMATION_FROM = 1_000  # items that the information is estimated from


def make_record(vid: VID, scored: LabelledItems, name: str, size: Size, images: int, number: int, *, split: str) -> Record:
    """A flat record; ``mutual_information`` is teacher layer -> nats (see
    :func:`~models.distillation.decoders.information_bound`), or ``None`` for methods without decoders.

    Args:
        scored: what the scores are of.
        images: how many the student has in all.
        number: of the run.
    """
    per_class = size.per_class or round(images / scored.num_classes)
    record: Record = {"split": split, "method": name, "per_class": per_class, "labels": size.labels, "run": number}
    part = scored.choose(min(INFORMATION_FROM, len(scored)), 0)
    record |= {"strength": vid.strength if vid.model.pairs else None, **vid.scores(scored)}
    return record | {"mutual_information": vid.information(part.items) or None}


def teacher_record(teacher: nn.Module, test: LabelledItems) -> Record | None:
    """The teacher on its own data set's test images; ``None`` where its classes are others."""
    outputs = embed(teacher, test.items)
    if outputs.shape[-1] != test.num_classes:
        return None
    scores = predictive_scores(outputs.softmax(-1), test.labels)
    return {"split": "test", "method": "teacher", "per_class": None, "labels": None, "run": 0, "strength": None} | {
        **scores,
        "mutual_information": None,
    }


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (``None`` for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_accuracy(records: Iterable[Record]) -> str:
    """Accuracy in % over runs: mean ± standard deviation."""
    mean, spread = mean_and_spread([100 * record["accuracy"] for record in records])
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def group_runs(records: Iterable[Record]) -> dict[tuple, list[Record]]:
    """Test records of students by (per_class, labels, method), smallest first, methods in their order."""
    rows = [r for r in records if r["split"] == "test" and r["method"] != "teacher"]
    order = {method: i for i, method in enumerate(dict.fromkeys(r["method"] for r in rows))}
    groups: dict[tuple, list[Record]] = {}
    for r in sorted(rows, key=lambda r: (r["per_class"], r["labels"] or 0, order[r["method"]])):
        groups.setdefault((r["per_class"], r["labels"], r["method"]), []).append(r)
    return groups


def format_table(records: Sequence[Record]) -> str:
    """The closing table as text: means over runs."""
    rows = [("method", "images a class", "labels", "λ ×", "accuracy %", "NLL", "ECE %", "I(t; s), nats a layer")]
    teachers = [r for r in records if r["method"] == "teacher"]
    for (per_class, labels, method), runs in [((None, None, "teacher"), [r]) for r in teachers] + list(
        group_runs(records).items()
    ):
        mean = lambda name: statistics.fmean(r[name] for r in runs)  # noqa: E731, B023
        information = runs[0]["mutual_information"] or {}
        layers = [statistics.fmean(r["mutual_information"][layer] for r in runs) for layer in information]
        rows.append(
            (
                method,
                "-" if per_class is None else str(per_class),
                "all" if labels is None else str(labels),
                "-" if runs[0]["strength"] is None else f"{runs[0]['strength']:g}",
                format_accuracy(runs),
                f"{mean('nll'):.3f}",
                f"{100 * mean('ece'):.1f}",
                ", ".join(f"{nats:.0f}" for nats in layers) or "-",
            )
        )
    return align(rows)
