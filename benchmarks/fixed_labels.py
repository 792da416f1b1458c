"""Meta-learning without memorization: characters that keep their labels, as in the classification tasks of Yin et al. 2020.

    taskset -c 1 python -m benchmarks.fixed_labels runs/fixed --root OMNIGLOT --batch 4 --learning-rate 1e-3

``OMNIGLOT`` is a folder with Lake's two small archives, whose characters are merged. Training characters are dealt out to the
labels once, and a training task has one character of each label, so that a network can learn by heart which label a character
has; tasks of the test, and of validation, have new characters, numbered anew. Rows are trained from random weights for as many
tasks each, on the same ones; the last row on the usual tasks, whose labels say nothing. All of them have the same network and
the same steps, of which MAML and MR-MAML adapt the same layers; MR-MAML's other layers cost nats. Its weight stands behind its
name, beside the mean loss of a query as in the paper; the one with the highest accuracy on validation tasks has a star.

Unlike theirs, characters are 152 and not 1200, tasks have 5 ways and not 20, images 20 pixels and not 28, and a character's
companions change from task to task, where theirs are of 60 fixed sets.

What is done is kept in the folder: started again, the script goes on where it was. Prints the table of all seeds there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.memorisation import make_rows, over_seeds, parse, slug
from data.ambiguous import sampler_of
from data.catalogue import load_data
from data.items import ImageSplits
from data.seeding import mix_seed
from inference.diagnostics.dependence import support_information
from inference.evaluation.evaluate import evaluate
from inference.evaluation.tables import align
from inference.meta.comparison import shared_rate
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner
from inference.meta.mapping import map_items
from inference.meta.stages import check_training, features_of, fit
from inference.runs.commands import options_to_yaml
from inference.runs.files import read_json
from inference.runs.folder import RunFolder

WAY, SHOT, QUERIES, IMAGE_SIZE, BACKBONE = 5, 1, 5, 20, "conv4-32"
TASKS, DEPENDENT = 400, 40  # tasks that are scored; and of which it is asked what predictions depend on
STEPS = "steps=5:size=0.03:norm=task"
"""Of all rows: gradient steps on the support, and batch norm by a task's items, as in MAML's original code."""


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        method: as ``--methods`` has it.
        weight: of the rate beside the mean loss of a query; ``None`` without a rate.
        labels: of training tasks.
    """

    method: str
    weight: float | None = None
    labels: str = "fixed"


RANDOM = f"mr-maml:{STEPS}:scale=0.05:tested=means"

ROWS = {
    "MAML, all layers": Row(f"maml:{STEPS}"),
    "MAML, head": Row(f"maml:{STEPS}:adapted=head"),
    "MR-MAML (W), 1e-6": Row(RANDOM, 1e-6),
    "MR-MAML (W), 1e-5": Row(RANDOM, 1e-5),
    "MR-MAML (W), 1e-4": Row(RANDOM, 1e-4),
    "MR-MAML, L2 alone, 1e-3": Row(f"mr-maml:{STEPS}:penalty=decay", 1e-3),
    "MAML, head, exclusive labels": Row(f"maml:{STEPS}:adapted=head", labels="exclusive"),
}
"""Rows by name."""


def options_of(row: Row, root: Path, *, tasks: int, batch: int, learning_rate: float, seed: int) -> MetaOptions:
    """What the command would be asked for: a ``row`` trained on so many ``tasks`` of the images below ``root``, from random
    weights, and read where training ends."""
    per_task = {} if row.weight is None else {"beta": row.weight * tasks * WAY * QUERIES}  # theirs is of a mean, ours of a sum
    return MetaOptions(
        data="omniglot",
        root=str(root),
        image_size=IMAGE_SIZE,
        backbone=BACKBONE,
        methods=row.method,
        labels=row.labels,
        way=WAY,
        shot=SHOT,
        queries=QUERIES,
        train_shot=str(SHOT),
        mixed=False,
        epochs=0,
        network_tasks=tasks,
        network_batch=batch,
        network_learning_rate=learning_rate,
        validations=1,
        validation_tasks=50,
        seed=seed,
        progress=False,
        **per_task,
    )


def cell(row: Row, options: MetaOptions, path: Path) -> dict[str, Any]:
    """Train a row, or read back what was trained in the folder ``path``, and test it."""
    data = load_data(options.data, options.root, image_size=IMAGE_SIZE, seed=options.seed)
    check_training(options, data)
    known = RunFolder(path)
    run = known if known.config.exists() else RunFolder.create(path, "svi_meta", options_to_yaml(options))
    (learner,) = fit(options, data, run).values()
    return measured(learner, options, data, run) | {"seconds": run.seconds().get(learner.variant.name)}


@torch.no_grad()
def measured(learner: FittedLearner, options: MetaOptions, data: ImageSplits, run: RunFolder) -> dict[str, Any]:
    """Accuracies in per cent on training tasks as they are, with their labels numbered anew, and on tasks of the other splits;
    what predictions owe to the support, of training tasks and of new ones; and the rate."""
    seed, found = mix_seed(options.seed, TASKS), dict[str, Any]()
    for name in ("train", "anew", "val", "test"):
        split, partition = ("train" if name == "anew" else name), options.seed if name == "train" else None
        part = map_items(learner.space, features_of(learner, data, run, split))
        sampler = sampler_of(part, options.spec(partition=partition if options.partition is not None else None), split=split)
        scores = evaluate(learner.model, learner.guide, sampler, tasks=TASKS, seed=seed, num_samples=8)
        found |= {name: 100 * scores.accuracy, f"{name}_ci95": 100 * scores.ci95}
        if name in ("train", "test"):
            episode = sampler.sample(DEPENDENT, seed=seed)
            how: dict[str, Any] = {"exclusive": True, "supports": WAY, "num_samples": 4}
            found[f"{name}_information"] = float(support_information(learner.model, learner.guide, episode, **how).mean())
    return found | {"rate": shared_rate(learner.model, learner.guide, episode.tasks(slice(1)))}


def table(folder: Path) -> str:
    """Means over seeds, and standard deviations where there are several."""
    done: dict[str, list[Mapping[str, Any]]] = {}
    for name in ROWS:
        if found := [read_json(path) for path in sorted(folder.glob(f"*-{slug(name)}.json"))]:
            done[name] = found
    weighted = [name for name in done if ROWS[name].weight is not None]
    best = max(weighted, key=lambda name: sum(one["val"] for one in done[name]) / len(done[name]), default=None)
    heads = ["training", "numbered anew", "validation", "new characters", "I, training", "I, new", "rate", "seconds"]
    rows = [["method", *heads]]
    for name, found in done.items():
        cells = partial(over_seeds, found)
        accuracies = [cells(key, form=".1f") for key in ("train", "anew", "val", "test")]
        told = [cells(key) for key in ("train_information", "test_information")]
        rate = f"{cells('rate', form='.0f')} once" if found[0]["rate"] is not None else "-"
        rows.append([f"{'* ' if name == best else ''}{name}", *accuracies, *told, rate, cells("seconds", form=".0f")])
    return align(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    given = parse(arguments, __doc__ or "", ROWS, "--tasks", 8000, images="Omniglot")
    how = {"batch": given.batch, "learning_rate": given.learning_rate, "seed": given.seed}

    def made(name: str) -> dict[str, Any]:
        options = options_of(ROWS[name], given.root, tasks=given.tasks, **how)
        return cell(ROWS[name], options, given.folder / f"{given.seed}-{slug(name)}")

    make_rows(given, made)
    print(table(given.folder))


if __name__ == "__main__":
    main()
