"""Meta-learning without memorization: the sinusoids of Yin et al. 2020, whose inputs tell training tasks apart.

    taskset -c 1 python -m benchmarks.memorisation runs/memorisation --seed 0

Training tasks have one of 16 amplitudes and say which; test tasks have any, and say a wrong one. Each method is trained once, on
ten support points and ten queries, and tested on five and on ten, as in the authors' code, from which networks, steps (one in
training, 100 of test tasks, α = 0.01) and the weights of the penalties come too. Unlike theirs, an update is of ten tasks and not
of one, Adam keeps its averages from one update to the next (theirs begins anew with each, of MR-MAML's weights) and its step size
falls to 0 by a cosine; test queries are uniform and their targets have noise, so that 0.01 is the least error that there is; and
the standard deviations of an encoder's weights start at 0.05, not at the least that single precision has.

What is done is kept in the folder: started again, the script goes on where it was. Prints the table of all seeds there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.curves import KNOWN_AMPLITUDES
from data.episodes import Episode
from data.seeding import mix_seed
from guides.tasks.adapted import AdaptedScorer
from guides.tasks.unrolled import UnrolledGuide
from inference.diagnostics.dependence import support_information
from inference.evaluation.tables import align, number
from inference.meta.choices import split_choice
from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_scores import generalisation, measure
from inference.meta.regression_tasks import MEMORISABLE, NOISE, TEST, Problem, stream_seed
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from inference.runs.folder import read_json, write_json

SHOTS, QUERIES, TEST_QUERIES, TEST_TASKS, DEPENDENT = (5, 10), 10, 15, 200, 40
SQUARED = "noise=0.7071067811865476"
"""With which −log p is the squared error, up to a constant, so that the weight of a penalty is the paper's."""
CELLS = {
    "MAML": ("maml:steps=1:test_steps=100", ".46 (.04)", ".13 (.01)"),
    "MR-MAML (A)": (f"mr-maml:penalty=codes:hidden=80:weight=1:{SQUARED}", ".17 (.03)", ".07 (.02)"),
    "MR-MAML (W)": (f"mr-maml:penalty=weights:weight=5e-5:{SQUARED}", ".16 (.04)", ".06 (.01)"),
    "MR-MAML, L2 alone": (f"mr-maml:penalty=decay:weight=5e-5:{SQUARED}", "", ""),
    "CNP": ("cnp:width=100:code=5:noise=0.1", ".91 (.10)", ".92 (.05)"),
    "MR-CNP (A)": ("mr-cnp:penalty=codes:weight=0.5:noise=0.1", ".10 (.01)", ".09 (.01)"),
    "MR-CNP (W)": ("mr-cnp:penalty=weights:weight=0.015:noise=0.1", ".11 (.02)", ".09 (.01)"),
    "MR-CNP, L2 alone": ("mr-cnp:penalty=decay:weight=0.015:noise=0.1", "", ""),
    "CNP, Bayes by backprop": ("cnp:width=100:code=5:penalty=weights:weight=0.015:noise=0.1", "", ""),
    "CNP, weight decay": ("cnp:width=100:code=5:penalty=decay:weight=0.015:noise=0.1", "", ""),
}
"""Rows: the method, and the published mean squared error of five and of ten shots, with its standard deviation."""


@contextmanager
def steps_of(fit: Fit, steps: int) -> Iterator[None]:
    """Inside, so many gradient steps are taken, where any are."""
    unrolled = [part for part in fit.modules() if isinstance(part, UnrolledGuide)]
    unrolled += [part.guide for part in fit.modules() if isinstance(part, AdaptedScorer)]
    before = [guide.steps for guide in unrolled]
    for guide in unrolled:
        guide.steps = steps
    try:
        yield
    finally:
        for guide, kept in zip(unrolled, before, strict=True):
            guide.steps = kept


def information(fit: Fit, episode: Episode) -> float:
    """I(ŷ; D given x), nats per query, of the first tasks."""
    seen = fit.embed(episode.tasks(slice(DEPENDENT)))
    return float(support_information(fit.model, fit.guide, seen, exclusive=False, num_samples=8).mean())


def cell(method: str, schedule: MetaSchedule) -> dict[str, Any]:
    """Train and test one method."""
    name, given = split_choice(method)
    setup = Setup(Problem(MEMORISABLE, max(SHOTS)), GuideSettings(), schedule, QUERIES)
    variant = REGRESSION_METHODS[name].variants(VariantSettings(beta=(1.0,), given=given), setup.problem)[0]
    begun = time.process_time()
    fit = REGRESSION_METHODS[name].train(setup, variant)
    found: dict[str, Any] = {"seconds": time.process_time() - begun, "beta": fit.objective.elbo.beta}
    training = setup.draw(TEST_TASKS, mix_seed(schedule.seed, TEST))
    with steps_of(fit, 1):
        scores, _ = measure(fit, training)
        found |= {"training_mse": scores["mse"], "training_information": information(fit, training)}
    for shot in SHOTS:
        asked = replace(setup, problem=Problem(MEMORISABLE, shot), queries=TEST_QUERIES)
        episode = asked.draw(TEST_TASKS, stream_seed(schedule.seed, schedule.tasks, TEST), new=True)
        scores, _ = measure(fit, episode)
        found[f"mse{shot}"], found[f"median{shot}"] = scores["mse"], scores["mse_median"]
        found[f"exact{shot}"] = float(exact_errors(episode).mean())
        if scores["rate"] is not None:
            found["code_rate"] = scores["rate"] / TEST_QUERIES
    return found | {"test_information": information(fit, episode)} | generalisation(fit, setup)


def exact_errors(episode: Episode, amplitudes: int = 2000) -> Tensor:
    """Squared errors of exact Bayes, which knows the law of test tasks, by the midpoint rule: ``[tasks]``."""
    assert episode.query_y is not None
    low, high, _ = KNOWN_AMPLITUDES
    amplitude = low + (high - low) * (torch.arange(amplitudes, dtype=torch.float64) + 0.5) / amplitudes
    missed = episode.support_y - amplitude[:, None, None] * episode.support_x[..., 0].sin()
    posterior = torch.softmax(-0.5 * (missed / NOISE[MEMORISABLE]).square().sum(-1), dim=0)
    mean = (posterior * amplitude[:, None]).sum(0)
    return (mean[:, None] * episode.query_x[..., 0].sin() - episode.query_y).square().mean(-1)


def table(folder: Path) -> str:
    """Means over seeds, and standard deviations where there are several."""
    rows = [["method", "5-shot", "published", "10-shot", "published", "training", "I, training", "I, test", "rate", "bound"]]
    for name, (_, *published) in CELLS.items():
        found = [read_json(path) for path in sorted(folder.glob(f"*-{slug(name)}.json"))]
        if not found:
            continue

        def cells(key: str, form: str = ".3f", found: list[Any] = found) -> str:
            values = [one[key] for one in found if one.get(key) is not None]
            if not values:
                return "-"
            mean, several = torch.tensor(values).mean().item(), len(values) > 1
            return number(mean, form) + (f" ({torch.tensor(values).std().item():{form}})" if several else "")

        rate = f"{cells('shared_rate', '.0f')} once" if found[0].get("shared_rate") else cells("code_rate", ".2f")
        both = zip(SHOTS, published, strict=True)
        errors = [text for shot, known in both for text in (cells(f"mse{shot}"), known or "-")]
        told = [cells(key) for key in ("training_mse", "training_information", "test_information")]
        rows.append([name, *errors, *told, rate, cells("pac_bayes", ".2f")])
    return align(rows)


def slug(name: str) -> str:
    """A name as files have it."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    schedule = MetaSchedule(
        given.updates * given.batch, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed
    )
    for name in given.only:
        path = given.folder / f"{given.seed}-{slug(name)}.json"
        if not path.exists():
            write_json(path, cell(CELLS[name][0], schedule))
            print(f"{name}: {read_json(path)}", flush=True)
    print(table(given.folder))


if __name__ == "__main__":
    main()
