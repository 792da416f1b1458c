"""The table of :mod:`benchmarks.few_shot_peers`: rules, ours, and their paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.episodes import TaskSpec
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.tables import align, number, plural

ONE, OWN, BOTH = "one", "per column", "one, per column"
"""Settings that are one for all columns, another for each, or both where they are the same."""


def key_of(setting: Mapping[str, Any]) -> str:
    """A setting as a key of JSON."""
    return json.dumps(setting)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: the rule, or ours.
        setting: ``ONE`` for all columns, ``OWN`` for each, or ``BOTH`` where they are the same.
        accuracy: ``[tasks]`` of each column, fractions; without those that it cannot do.
        speed: tasks per second.
    """

    name: str
    setting: str
    accuracy: Mapping[str, Tensor]
    speed: float | None = None

    def less(self, other: Row) -> Row:
        """Our accuracy less another's on the same tasks."""
        both = {name: own - other.accuracy[name] for name, own in self.accuracy.items() if name in other.accuracy}
        return Row(f"{self.name} − {other.name}", other.setting, both)

    def cell(self, column: str, sign: str = "") -> str:
        """Mean and 95 % interval over tasks, in %."""
        if column not in self.accuracy:
            return "-"
        values = self.accuracy[column]
        return f"{100 * float(values.mean()):{sign}.2f} ± {100 * confidence_interval(values):.2f}"

    def leads(self, column: str) -> bool:
        """Whether a difference is above zero by more than its interval."""
        values = self.accuracy[column]
        return float(values.mean()) > confidence_interval(values)


def peer_rows(name: str, kept: Mapping[str, Any], columns: Mapping[str, TaskSpec]) -> list[Row]:
    """A rule's rows, from what was kept of it: one where its settings are the same for all columns."""

    def accuracy(kind: str) -> dict[str, Tensor]:
        found = {}
        for column, spec in columns.items():
            setting = kept[ONE] if kind == ONE else kept[OWN][column]
            right = map(int, kept["tests"][key_of(setting)][column]["right"].split())
            found[column] = torch.tensor(list(right), dtype=torch.float64) / (spec.way * spec.queries)
        return found

    speed = kept["tests"][key_of(kept[ONE])][next(iter(columns))]["speed"]
    if all(setting == kept[ONE] for setting in kept[OWN].values()):
        return [Row(name, BOTH, accuracy(ONE), speed)]
    return [Row(name, ONE, accuracy(ONE), speed), Row(name, OWN, accuracy(OWN))]


def against(own: Row, peers: Sequence[Row]) -> list[Row]:
    """The peers to hold ours against: what was chosen for each column stands beside what was chosen for each column."""
    return [peer for peer in peers if own.setting == ONE or peer.setting != ONE]


def table(peers: Sequence[Row], ours: Sequence[Row], columns: Sequence[str]) -> str:
    """All rows, and below them the paired differences."""
    rows = [["accuracy %", "setting", *columns, "tasks/s"]]
    rows += [[r.name, r.setting, *map(r.cell, columns), number(r.speed, ".0f")] for r in (*peers, *ours)]
    for own in ours:
        differences = [own.less(peer) for peer in against(own, peers)]
        rows += [[d.name, d.setting, *(d.cell(c, "+") for c in columns), ""] for d in differences]
    return align(rows, left=(0, 1))


def verdict(own: Row, peers: Sequence[Row], columns: Sequence[str]) -> str:
    """In which columns ours is ahead of every peer by more than the interval of the difference, and of whom not."""
    ahead, behind = [], []
    for column in (column for column in columns if column in own.accuracy):
        reached = {p.name: None for p in against(own, peers) if column in p.accuracy and not own.less(p).leads(column)}
        if reached:
            behind.append(f"{column} (not of {', '.join(reached)})")
        else:
            ahead.append(column)
    return f"{own.name}: ahead of every peer, beyond the interval, in {', '.join(ahead) or 'no column'}" + (
        f"; not in {', '.join(behind)}" if behind else ""
    )


def summary(own: Row, peers: Sequence[Row]) -> dict[str, Any]:
    """Means and intervals of a row of ours and of its differences, for JSON."""

    def figures(row: Row) -> dict[str, Any]:
        return {c: {"mean": float(values.mean()), "ci95": confidence_interval(values)} for c, values in row.accuracy.items()}

    differences = [{"peer": p.name, "setting": p.setting, "columns": figures(own.less(p))} for p in against(own, peers)]
    return {"accuracy": figures(own), "speed": own.speed, "differences": differences}


def note(name: str, kept: Mapping[str, Any], tasks: int) -> str:
    """What was chosen for a rule."""
    own = kept["own tasks"]
    by = "" if own == tasks else f" (easyfsl's class on the first {own} test tasks, the same in batches on the others)"
    chosen = [(ONE, kept[ONE]), *((column, setting) for column, setting in kept[OWN].items() if setting != kept[ONE])]
    lines = [f"  {kind}: " + ", ".join(f"{key} {value}" for key, value in setting.items()) for kind, setting in chosen]
    return "\n".join([f"{name}, of {plural(len(kept['scores']), 'setting')}{by}", *lines])
