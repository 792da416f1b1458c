"""Meta-learning without memorization: the sinusoids of Yin et al. 2020, whose inputs tell training tasks apart.

    taskset -c 1 python -m benchmarks.memorisation runs/memorisation --seed 0

Training tasks have one of 16 amplitudes and say which; test tasks have any, and say a wrong one. Each method is trained once,
on ten support points and ten queries, and tested on five and on ten, as in the authors' code, whose networks, steps (one in
training, 100 of test tasks, α = 0.01) and weights of the penalties are taken too. Unlike theirs, an update is of ten tasks and
not of one; Adam keeps its averages from one update to the next (theirs begins anew with each, of MR-MAML's encoder: rows "Adam
afresh") and its step size falls to 0 by a cosine; test queries are uniform and their targets have noise, so that 0.01 is the
least error that there is; and the standard deviations of an encoder's weights start at 0.05, not at the least that single
precision has.

What is done is kept in the folder: started again, the script goes on where it was. Prints the table of all seeds there.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro.distributions import validation_enabled
from torch import Tensor

from data.curves import KNOWN_AMPLITUDES, told_alike
from data.episodes import Episode
from data.seeding import mix_seed
from guides.tasks.adapted import AdaptedScorer
from guides.tasks.unrolled import UnrolledGuide
from inference.diagnostics.dependence import support_information
from inference.evaluation.tables import align, number
from inference.meta.choices import split_choice
from inference.meta.regression_fits import Fit, Setup
from inference.meta.regression_guides import descend
from inference.meta.regression_methods import REGRESSION_METHODS
from inference.meta.regression_scores import generalisation, measure
from inference.meta.regression_tasks import MEMORISABLE, NOISE, TEST, Problem, stream_seed
from inference.meta.settings import GuideSettings, MetaSchedule, VariantSettings
from inference.runs.files import finite, read_json, write_json
from inference.runs.tensors import load_state, load_tensors, save_tensors

SHOTS, QUERIES, TEST_QUERIES, TEST_TASKS, DEPENDENT = (5, 10), 10, 15, 100, 20
TOLD, AFRESH = 3, 15000  # numbers that tasks are made to tell; updates where Adam begins anew

SQUARED = "noise=0.7071067811865476"
"""With which −log p is the squared error, up to a constant, so that the weight of a penalty is the paper's."""


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        method: as ``--methods`` has it.
        published: mean squared error of five and of ten shots in the paper, with its standard deviation.
        afresh: trained as in the authors' code: one task an update, and of the encoder's weights (of all, where these are
            penalised) an Adam that begins anew with each update.
        trained_as: name of the row whose trained network this one tests in another way; its own where there is none.
    """

    method: str
    published: tuple[str, str] = ("-", "-")
    afresh: bool = False
    trained_as: str = ""


def maml_row(
    penalty: str, weight: str, *published: str, afresh: bool = False, tested: str = "draws", trained_as: str = ""
) -> Row:
    """MR-MAML with the paper's networks."""
    of_codes = f":hidden=80:tested={tested}" if penalty == "codes" else ""
    method = f"mr-maml:penalty={penalty}:weight={weight}{of_codes}:{SQUARED}"
    return Row(method, published or ("-", "-"), afresh, trained_as)  # type: ignore[arg-type]


ROWS = {
    "MAML": Row("maml:steps=1:test_steps=100", (".46 (.04)", ".13 (.01)")),
    "MR-MAML (A), 1": maml_row("codes", "1"),
    "MR-MAML (A), 1, at means": maml_row("codes", "1", ".17 (.03)", ".07 (.02)", tested="means", trained_as="MR-MAML (A), 1"),
    "MR-MAML (A), 5": maml_row("codes", "5"),
    "MR-MAML (A), 1, Adam afresh": maml_row("codes", "1", afresh=True),
    "MR-MAML (A), 1, Adam afresh, at means": maml_row(
        "codes", "1", afresh=True, tested="means", trained_as="MR-MAML (A), 1, Adam afresh"
    ),
    "MR-MAML (W), 5e-5": maml_row("weights", "5e-5", ".16 (.04)", ".06 (.01)"),
    "MR-MAML (W), 1e-3": maml_row("weights", "1e-3"),
    "MR-MAML, L2 alone, 5e-5": maml_row("decay", "5e-5"),
    "MR-MAML, L2 alone, 1e-3": maml_row("decay", "1e-3"),
    "MR-MAML, L2 alone, 5e-5, Adam afresh": maml_row("decay", "5e-5", afresh=True),
    "CNP": Row("cnp:width=100:code=5:noise=0.1", (".91 (.10)", ".92 (.05)")),
    "MR-CNP (A), 0.5": Row("mr-cnp:penalty=codes:weight=0.5:noise=0.1", (".10 (.01)", ".09 (.01)")),
    "MR-CNP (A), 2": Row("mr-cnp:penalty=codes:weight=2:noise=0.1"),
    "MR-CNP (W), 0.015": Row("mr-cnp:penalty=weights:weight=0.015:noise=0.1", (".11 (.02)", ".09 (.01)")),
    "MR-CNP, L2 alone, 0.015": Row("mr-cnp:penalty=decay:weight=0.015:noise=0.1"),
    "CNP, Bayes by backprop, 0.015": Row("cnp:width=100:code=5:penalty=weights:weight=0.015:noise=0.1"),
    "CNP, weight decay, 0.015": Row("cnp:width=100:code=5:penalty=decay:weight=0.015:noise=0.1"),
}
"""Rows by name, with the weight of the penalty beside the mean over tasks and queries; without published numbers it is ours, or
the row is. "At means": test tasks, support and queries, are read through the means of their codes, as in the authors' code, and
not through draws."""


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


def information(fit: Fit, tasks: Sequence[Episode]) -> float | None:
    """I(ŷ; D given x), nats per query, of predictions with the true noise, so that methods compare whatever noise they have."""
    likelihood = fit.model.likelihood
    kept = likelihood.log_noise.detach().clone()
    with torch.no_grad():
        likelihood.log_noise.fill_(math.log(NOISE[MEMORISABLE]))
        found = [
            support_information(fit.model, fit.guide, fit.embed(some), exclusive=False, num_samples=8).mean() for some in tasks
        ]
        likelihood.log_noise.copy_(kept)
    return finite(float(torch.stack(found).mean()))


def train_afresh(fit: Fit, setup: Setup) -> None:
    """As in the authors' code: Adam begins anew with each update, which is then g / (|g| + ε), of the encoder's weights where
    codes are penalised, and of all where weights are. Their ε of 1e-7 is 3.2e-6 at Adam's first step, and here that of a sum
    over queries, not of their mean."""
    encoder = [p for name, p in fit.named_parameters() if p.requires_grad and ".encoder." in name]
    others = [p for name, p in fit.named_parameters() if p.requires_grad and ".encoder." not in name]
    anew: dict[str, Any] = {"betas": (0.0, 0.0), "eps": 3.2e-6 * setup.queries}
    groups = [{"params": encoder, **anew}, {"params": others}] if encoder else [{"params": others, **anew}]
    descend(fit, setup.draw, torch.optim.Adam(groups, 1e-3), setup.schedule)


def trained(row: Row, setup: Setup, path: Path) -> tuple[Fit, float]:
    """A row's method after training, and the seconds of processor time that it took; read back where that is done."""
    name, given = split_choice(row.method)
    method = REGRESSION_METHODS[name]
    variant = method.variants(VariantSettings(beta=(1.0,), given=given), setup.problem)[0]
    fit, begun = method.build(setup, variant), time.process_time()
    if path.exists():
        load_state(fit, path)
        return fit, load_tensors(path)[1]["seconds"]
    if row.afresh:
        with steps_of(fit, 1):
            train_afresh(fit, setup)
    else:
        fit = method.train(setup, variant)
    seconds = time.process_time() - begun
    save_tensors(path, fit.state_dict(), {"seconds": seconds})
    return fit, seconds


def cell(row: Row, schedule: MetaSchedule, path: Path) -> dict[str, Any]:
    """Train and test one method."""
    if row.afresh:
        schedule = replace(schedule, tasks=AFRESH, batch=1)
    setup = Setup(Problem(MEMORISABLE, max(SHOTS)), GuideSettings(), schedule, QUERIES)
    fit, seconds = trained(row, setup, path)
    found: dict[str, Any] = {"seconds": seconds, "beta": fit.objective.elbo.beta}
    for shot in SHOTS:
        asked = replace(setup, problem=Problem(MEMORISABLE, shot), queries=TEST_QUERIES)
        new = asked.draw(TEST_TASKS, stream_seed(schedule.seed, schedule.tasks, TEST), split="test")
        scores, _ = measure(fit, new)
        found[f"mse{shot}"], found[f"median{shot}"] = scores["mse"], scores["mse_median"]
        found[f"diverged{shot}"] = scores["diverged"]
        found[f"exact{shot}"] = float(exact_errors(new).mean())
        if scores["rate"] is not None:
            found["code_rate"] = scores["rate"] / TEST_QUERIES
    alike = [told_alike(new.tasks(slice(first, first + DEPENDENT))) for first in range(0, TOLD * DEPENDENT, DEPENDENT)]
    found["adapted_information"] = information(fit, alike)
    training = setup.draw(TEST_TASKS, mix_seed(schedule.seed, TEST))
    with steps_of(fit, 1):
        found["new_information"] = information(fit, alike)
        found["training_information"] = information(fit, [training.tasks(slice(2 * DEPENDENT))])
        found["training_mse"] = measure(fit, training)[0]["mse"]
    return found | generalisation(fit, setup)


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
    told = ["training", "I, training", "I, new", "I, K = 100"]
    rows = [["method", *["5-shot", "median", "published", "10-shot", "median", "published"], *told, "rate", "bound"]]
    for name, row in ROWS.items():
        found = [read_json(path) for path in sorted(folder.glob(f"*-{slug(name)}.json"))]
        if not found:
            continue

        cells = partial(over_seeds, found)
        rate = f"{cells('shared_rate', '.0f')} once" if found[0].get("shared_rate") else cells("code_rate", ".2f")
        both = zip(SHOTS, row.published, strict=True)
        errors = [text for shot, known in both for text in (cells(f"mse{shot}"), cells(f"median{shot}"), known)]
        told = [cells(key) for key in ("training_mse", "training_information", "new_information", "adapted_information")]
        rows.append([name, *errors, *told, rate, cells("pac_bayes", ".2f")])
    return align(rows)


def over_seeds(found: Sequence[Mapping[str, Any]], key: str, form: str = ".3f") -> str:
    """The mean of a number over what was ``found`` with each seed, and its standard deviation where there are several."""
    values = torch.tensor([one[key] for one in found if one.get(key) is not None])
    if not len(values):
        return "-"
    return number(float(values.mean()), form) + (f" ({float(values.std()):{form}})" if len(values) > 1 else "")


def slug(name: str) -> str:
    """A name as files have it."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    given = parse(arguments, __doc__ or "", ROWS, "--updates", 6000)
    schedule = MetaSchedule(given.updates * given.batch, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed)

    def made(name: str) -> dict[str, Any]:
        return cell(ROWS[name], schedule, given.folder / f"{given.seed}-{slug(ROWS[name].trained_as or name)}.safetensors")

    make_rows(given, made)
    print(table(given.folder))


def parse(
    arguments: Sequence[str] | None, about: str, rows: Mapping[str, Any], length: str, usual: int, *, images: str = ""
) -> argparse.Namespace:
    """The options of a benchmark with ``rows`` by name, whose training has an option for its ``length``, and one for the place
    of ``images``, where it needs any."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what is trained and measured is kept here")
    if images:
        parser.add_argument("--root", type=Path, required=True, help=f"folder of {images}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(length, type=int, default=usual)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--only", nargs="+", choices=rows, default=list(rows), metavar="ROW", help=f"of {'; '.join(rows)}")
    return parser.parse_args(arguments)


def make_rows(given: argparse.Namespace, made: Callable[[str], Mapping[str, Any]]) -> None:
    """Make those rows of a seed that the folder has not, each by its name, and keep them there."""
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        path = given.folder / f"{given.seed}-{slug(name)}.json"
        if not path.exists():
            with validation_enabled(False):  # of a task whose steps run away nothing is finite
                write_json(path, made(name))
            print(f"{name}: {read_json(path)}", flush=True)


if __name__ == "__main__":
    main()
