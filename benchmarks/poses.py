"""Poses of letters, which can be learned by heart: the problem of Yin et al. 2020, section 6.2, with letters for objects.

    taskset -c 1 python -m benchmarks.poses runs/poses --seed 0

A task is a letter, and the target the angle by which a picture of it is turned from how the letter lies, its secret. Each of
240 training letters lies as it lies in every task, so that a network can learn by heart how; letters of the test are of other
scripts. Errors are of angles in tenths of their range of 180°, as the authors' are of 360°: the variance is 8.33.

Unlike theirs, pictures have 16 pixels and not 128, the convolutions of the encoder half as many filters or fewer, what MR-MAML
adapts is a perceptron on 64 codes and not convolutions of 196, without batch norm, and training is of some thousand tasks.

What is done is kept in the folder: started again, the script goes on where it was. Prints the table of all seeds there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memorisation import make_rows, over_seeds, parse, slug
from data.seeding import mix_seed
from inference.evaluation.tables import align
from inference.meta.choices import split_choice
from inference.meta.regression_fits import Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_scores import measure, shared_rate
from inference.meta.regression_tasks import POSES, TEST, Problem
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from inference.runs.files import read_json
from inference.runs.tensors import load_state, load_tensors, save_tensors

QUERIES, TASKS = 15, 200  # of a task; tasks that are scored

ROWS = {
    "MAML": ("maml:steps=1:test_steps=5", "5.39 (1.31)"),
    "MR-MAML (A)": ("mr-maml:steps=5:test_steps=20:noise=1:penalty=codes:weight=0.01", "-"),
    "MR-MAML (W)": ("mr-maml:steps=5:test_steps=20:noise=1:scale=0.01:weight=1e-6", "2.26 (.09)"),
    "MR-MAML, L2 alone": ("mr-maml:steps=5:test_steps=20:noise=1:penalty=decay:weight=1e-3", "-"),
    "CNP": ("cnp:width=100:code=100:noise=1", "8.48 (.12)"),
    "MR-CNP (A)": ("mr-cnp:code=100:noise=1:penalty=codes:weight=0.01", "-"),
    "MR-CNP (W)": ("mr-cnp:code=100:noise=1:scale=0.01:weight=1e-6", "2.89 (.18)"),
    "MR-CNP, L2 alone": ("mr-cnp:code=100:noise=1:penalty=decay:weight=1e-3", "-"),
}
"""Rows by name: the method as ``--methods`` has it, and the published error, with its standard deviation. A weight stands
beside half the mean squared error, for the noise is 1: it is half of what it is in the paper."""


def cell(method: str, schedule: MetaSchedule, path: Path) -> dict[str, Any]:
    """Train a method, or read it back from ``path``, and test it."""
    setup = Setup(Problem(POSES), GuideSettings(), schedule, QUERIES)
    name, given = split_choice(method)
    entry = REGRESSION_METHODS[name]
    variant = entry.variants(VariantSettings(beta=(1.0,), given=given), setup.problem)[0]
    if path.exists():
        fit = entry.build(setup, variant)
        load_state(fit, path)
    else:
        begun = time.process_time()
        fit = entry.train(setup, variant)
        save_tensors(path, fit.state_dict(), {"seconds": time.process_time() - begun})
    found: dict[str, Any] = {"seconds": load_tensors(path)[1]["seconds"], "beta": fit.objective.elbo.beta}
    for split in ("train", "val", "test"):
        tasks = setup.draw(TASKS, mix_seed(schedule.seed, TEST), split=split)
        scores, _ = measure(fit, tasks)
        found |= {f"{split}_mse": scores["mse"], f"{split}_median": scores["mse_median"]}
        found["code_rate"] = None if scores["rate"] is None else scores["rate"] / QUERIES
    return found | {"shared_rate": shared_rate(fit, tasks)}


def table(folder: Path) -> str:
    """Means over seeds, and standard deviations where there are several."""
    rows = [["method", "training", "new letters", "median", "published", "rate", "seconds"]]
    for name, (_, published) in ROWS.items():
        found = [read_json(path) for path in sorted(folder.glob(f"*-{slug(name)}.json"))]
        if not found:
            continue

        cells = partial(over_seeds, found, form=".2f")
        rate = f"{cells('shared_rate', form='.0f')} once" if found[0]["shared_rate"] else cells("code_rate")
        errors = [cells(key) for key in ("train_mse", "test_mse", "test_median")]
        rows.append([name, *errors, published, rate, cells("seconds", form=".0f")])
    return align(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    given = parse(arguments, __doc__ or "", ROWS, "--tasks", 20000)
    schedule = MetaSchedule(given.tasks, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed)
    make_rows(given, lambda name: cell(ROWS[name][0], schedule, given.folder / f"{given.seed}-{slug(name)}.safetensors"))
    print(table(given.folder))


if __name__ == "__main__":
    main()
