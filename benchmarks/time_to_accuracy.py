"""Seconds of training from features to the accuracy that the original SIB has after 20 000 tasks: its authors' code and ours.

    python -m benchmarks.time_to_accuracy --original CHECKOUT --features FILE --seed 0 --json FILE

The original (:mod:`benchmarks.original_sib`) is trained by each of ``ORIGINAL``, the published recipe first, and read along its
way, every ``--every`` tasks. Ours has a schedule that ends with its length, so each length is a run of its own, in the settings
of ``OURS``. All are read on the same balanced 5-way 1-shot test tasks, those of
:meth:`~inference.meta.learner.FittedLearner.evaluate`.

Counted are sampling and all of training, ours with the fit of its feature space, Lightning and checkpoints. Not counted are
imports, test tasks, and validation, of which the original here has none.

``--batches 8 16 32 --rates 5e-3 1e-2`` asks instead how many tasks a step are the quickest way of ours, by each step size: then
accuracy is that on validation classes, and the original is not needed.

One table has what was measured; the other, for each recipe of the original, how long it took in all, when it first was as
accurate as at its end, and the shortest run of ours from which on no longer one is less accurate than that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.few_shot_peers import Outcome, run_learner, run_rule
from benchmarks.original_sib import RECIPES, STEPS, Recipe, classifier_of, one_by_one, train_original
from benchmarks.speed.timing import CLOCKS
from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from data.seeding import mix_seed, seeded
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import feature_space
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, MetaSchedule, settings
from inference.meta.tasks import kinds, training_tasks
from inference.meta.training import MetaTraining
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, load_features
from inference.runs.training import train

SPEC = TaskSpec()


def adam(batch: int, rate: float) -> Recipe:
    """Steps on ``batch`` tasks by Adam with one step size."""
    return batch, lambda parameters: torch.optim.Adam(parameters, rate)


ORIGINAL: dict[str, Recipe] = {
    "original, published": RECIPES["sgd"],
    "original, Adam 1e-3, 8 tasks a step": RECIPES["adam"],
    "original, Adam 1e-2, 8 tasks a step": adam(8, 1e-2),
    "original, Adam 3e-3, 16 tasks a step": adam(16, 3e-3),
    "original, Adam 1e-2, 64 tasks a step": adam(64, 1e-2),
}
"""The published recipe, then others: the quickest and the most accurate of those that were tried."""
OURS: dict[str, dict[str, Any]] = {
    "ours, default": {},
    "ours, cosine": {"predictor": "cosine"},
    "ours, cosine, 5-way 1-shot alone": {"predictor": "cosine", "train_way": "5", "train_shot": "1", "mixed": False},
}
TASKS = (320, 480, 640, 960, 1280, 1920, 3840)


@dataclass(frozen=True)
class Point:
    """What one training had reached.

    Attributes:
        name: of the recipe.
        tasks: trained on.
        seconds: of training.
        accuracy: mean over test tasks, a fraction.
        interval: half of its 95 % interval.
    """

    name: str
    tasks: int
    seconds: float
    accuracy: float
    interval: float


class Stopwatch:
    """Seconds of a clock, without those of blocks that are left out.

    Args:
        clock: a name of :data:`~benchmarks.speed.timing.CLOCKS`.
    """

    def __init__(self, clock: str) -> None:
        self.clock, self.left_out = CLOCKS[clock], 0.0
        self.start = self.clock()

    @property
    def seconds(self) -> float:
        """So far."""
        return self.clock() - self.start - self.left_out

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the block's time out."""
        start = self.clock()
        yield
        self.left_out += self.clock() - start


class Timed(MetaTraining):
    """Training of ours whose validation is not counted by ``watch``."""

    watch: Stopwatch

    def on_train_epoch_end(self) -> None:
        with self.watch.stopped():
            super().on_train_epoch_end()


def point(name: str, tasks: int, seconds: float, outcome: Outcome) -> Point:
    """A point from its outcome on test tasks."""
    accuracy = outcome.accuracy
    interval = 1.96 * float(accuracy.std()) / len(accuracy) ** 0.5
    return Point(name, tasks, seconds, float(accuracy.mean()), interval)


def original_points(
    name: str, build: Callable[..., torch.nn.Module], features: Features, chosen: argparse.Namespace
) -> list[Point]:
    """The original, every ``chosen.every`` tasks of its way to ``chosen.original_tasks``."""
    test, found = EpisodeSampler(features["test"], SPEC), []
    with seeded(chosen.seed):
        classifier = build(SPEC.way, features["train"].items.shape[-1], STEPS)
    watch, sampler, recipe = Stopwatch(chosen.clock), EpisodeSampler(features["train"], SPEC), ORIGINAL[name]
    last = chosen.original_tasks // recipe[0] * recipe[0]

    def read(tasks: int) -> None:
        if tasks == last or tasks // chosen.every > (found[-1].tasks if found else 0) // chosen.every:
            seconds = watch.seconds
            with watch.stopped():
                outcome = run_rule(
                    lambda setting, episode: one_by_one(classifier, episode),
                    lambda setting, episode: episode,
                    {},
                    test,
                    chosen.test_tasks,
                    mix_seed(TEST_SEED),
                )
                found.append(point(name, tasks, seconds, outcome))

    train_original(classifier, [sampler], tasks=chosen.original_tasks, recipe=recipe, seed=chosen.seed, after=read)
    return found


def our_point(
    name: str,
    features: Features,
    tasks: int,
    chosen: argparse.Namespace,
    setting: Mapping[str, Any] | None = None,
    split: str = "test",
) -> Point:
    """Ours, trained on ``tasks`` tasks in a ``setting``, that of its ``name`` when not given, and read on a ``split``."""
    given = OURS[name] if setting is None else setting
    options = SibOptions(tasks=tasks, seed=chosen.seed, beta=0.1, progress=False, device="cpu", **given)
    guide, base = settings(GuideSettings, options), features["train"]
    variant = next(variant for variant in options.variants() if not variant.reference)
    schedule = settings(MetaSchedule, options)
    with tempfile.TemporaryDirectory() as scratch, seeded(options.seed):
        run, watch = RunFolder.create(Path(scratch) / "run", "sib", ""), Stopwatch(chosen.clock)
        space, means = feature_space(guide, variant.predictor, base)
        learner = FittedLearner.build(variant, guide, options.spec(), space, means, None, "")
        validation = kinds(options, features["val"], "val")
        module = Timed(learner.objective, training_tasks(options, base), validation, schedule, space)
        module.watch = watch
        train(module, options.loop, run, variant.name, epochs=schedule.validations, monitor="val/loss")
        seconds = watch.seconds
    trained = schedule.steps * schedule.validations * schedule.batch
    return point(name, trained, seconds, run_learner(learner, features[split], SPEC, chosen.test_tasks))


def our_batches(features: Features, chosen: argparse.Namespace) -> dict[str, list[Point]]:
    """Ours in its default setting by tasks per step and step size, on tasks of the validation classes."""
    return {
        name: [
            our_point(name, features, tasks, chosen, {"batch": batch, "learning_rate": rate}, "val") for tasks in chosen.tasks
        ]
        for batch in chosen.batches
        for rate in chosen.rates
        for name in [f"{batch} tasks a step, step size {rate:g}"]
    }


def first_at(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first point that is as accurate."""
    return next((p for p in points if p.accuracy >= accuracy), None)


def first_to_stay(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first point that is as accurate, as are all after it."""
    below = [i for i, p in enumerate(points) if p.accuracy < accuracy]
    return next(iter(points[below[-1] + 1 if below else 0 :]), None)


def measured(curves: Mapping[str, Sequence[Point]]) -> str:
    """All points, as a table in Markdown."""
    lines = ["| | tasks | seconds | accuracy % |", "|---|---|---|---|"]
    for p in (p for points in curves.values() for p in points):
        lines.append(f"| {p.name} | {p.tasks} | {p.seconds:.2f} | {100 * p.accuracy:.2f} ± {100 * p.interval:.2f} |")
    return "\n".join(lines)


def verdict(originals: Mapping[str, Sequence[Point]], ours: Mapping[str, Sequence[Point]]) -> str:
    """Who is how soon where each recipe of the original ends, as a table in Markdown."""
    heads = ["its accuracy %", "s for all its tasks", "s until first so accurate", *(f"{name}: tasks, s" for name in ours)]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, points in originals.items():
        end = points[-1]
        first = first_at(points, end.accuracy)
        assert first is not None
        cells = [name, f"{100 * end.accuracy:.2f}", f"{end.seconds:.1f}", f"{first.seconds:.1f} ({first.tasks} tasks)"]
        for curve in ours.values():
            there = first_to_stay(curve, end.accuracy)
            shares = f" (1/{end.seconds / there.seconds:.1f}, 1/{first.seconds / there.seconds:.1f})" if there else ""
            cells.append(f"{there.tasks}, {there.seconds:.2f}{shares}" if there else "not reached")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", help="checkout of sib_meta_learn; needed without --batches")
    parser.add_argument("--features", required=True, help="feature file")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings")
    parser.add_argument("--original-tasks", type=int, default=20_000, help="that the original is trained on")
    parser.add_argument("--every", type=int, default=1000, help="tasks of the original between two readings")
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS, help="lengths of ours")
    parser.add_argument("--batches", type=int, nargs="+", help="tasks a step of ours, to compare on validation classes instead")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-3], help="step sizes to try each of them with")
    parser.add_argument("--test-tasks", type=int, default=1000)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: computing time, on a busy machine")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> str:
    """Train all, and print what was measured; returns it."""
    chosen = parse(words)
    if not chosen.batches and chosen.original is None:
        raise UserError("give a checkout of the original: `original=FOLDER`")
    torch.set_num_threads(1)
    features = load_features(chosen.features)
    our_point(next(iter(OURS)), features, 1, chosen)  # what is done once in a process, for the first of them as for the others
    if chosen.batches:
        originals, ours = {}, our_batches(features, chosen)
        shown = measured(ours)
    else:
        build = classifier_of(chosen.original)
        originals = {name: original_points(name, build, features, chosen) for name in ORIGINAL}
        ours = {name: [our_point(name, features, tasks, chosen) for tasks in sorted(chosen.tasks)] for name in OURS}
        shown = f"{measured(originals | ours)}\n\n{verdict(originals, ours)}"
    print(shown)
    if chosen.json:
        points = [asdict(p) for curve in (originals | ours).values() for p in curve]
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(chosen).items()}
        chosen.json.write_text(json.dumps({"options": given, "points": points}, indent=2))
    return shown


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
