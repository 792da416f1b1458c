"""Mean and spread over seeds of ``svi_bnn`` runs: ``python benchmarks/bnn_table.py RUN [RUN ...]``.

Runs with the same number of training items form one table; each cell is mean ± standard deviation over the seeds. Below it:
which pairs of algorithms differ in accuracy or NLL beyond the seeds' spread (paired, Student's t, 95 %).
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from pathlib import Path

import scipy.stats

from inference.evaluation.tables import align

COLUMNS = {
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL", 1, 4),
    "ece": ("ECE %", 100, 2),
    "rate": ("rate (prior)", 1, 1),
    "mixture_rate": ("rate (mixture)", 1, 1),
    "neg_elbo": ("−ELBO", 1, 0),
    "evidence": ("log evidence", 1, 0),
    "guess": ("guess", 1, 0),
    "gap": ("gap %", 100, 2),
    "information": ("I(w; S)", 1, 2),
    "bound": ("bound %", 100, 1),
    "auroc": ("AUROC", 1, 4),
    "seconds": ("seconds", 1, 0),
}


def load(folders: list[str]) -> dict[int, dict[str, dict[int, dict]]]:
    """items -> algorithm -> seed -> test record."""
    tables: dict[int, dict[str, dict[int, dict]]] = {}
    for folder in folders:
        content = json.loads((Path(folder) / "metrics.json").read_text())
        for record in content["results"]:
            if record["split"] == "test":
                algorithms = tables.setdefault(record["items"], {})
                algorithms.setdefault(record["algorithm"], {})[content["seed"]] = record
    return tables


def cell(values: list[float | None], factor: float, digits: int) -> str:
    """``mean ± sd``."""
    numbers = [factor * v for v in values if v is not None]
    if not numbers:
        return "-"
    mean = f"{statistics.mean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def compare(algorithms: dict[str, dict[int, dict]], key: str) -> list[str]:
    """One line for each pair whose paired difference of ``key`` exceeds the seeds' spread: Student's t, 95 %."""
    _, factor, digits = COLUMNS[key]
    lines, pairs = [], 0
    for (a, first), (b, second) in itertools.combinations(algorithms.items(), 2):
        shared = sorted(first.keys() & second.keys())
        if len(shared) < 2:
            continue
        pairs += 1
        differences = [factor * (first[s][key] - second[s][key]) for s in shared]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        width = float(scipy.stats.t.ppf(0.975, len(shared) - 1)) * error
        if abs(mean) > width:
            lines.append(f"{COLUMNS[key][0]}: {a} − {b} = {mean:+.{digits}f} ± {width:.{digits}f} exceeds the seeds' spread")
    if pairs:
        lines.append(f"{COLUMNS[key][0]}: the other {pairs - len(lines)} pairs do not differ beyond the seeds' spread")
    return lines


def main() -> None:
    for items, algorithms in sorted(load(sys.argv[1:]).items()):
        rows = [("algorithm", "β", *(title for title, _, _ in COLUMNS.values()))]
        for name, seeds in algorithms.items():
            betas = "/".join(f"{seeds[s]['beta']:g}" for s in sorted(seeds))
            cells = (cell([r.get(key) for r in seeds.values()], f, d) for key, (_, f, d) in COLUMNS.items())
            rows.append((name, betas, *cells))
        print(f"n = {items}\n{align(rows)}\n" + "\n".join(compare(algorithms, "accuracy") + compare(algorithms, "nll")) + "\n")


if __name__ == "__main__":
    main()
