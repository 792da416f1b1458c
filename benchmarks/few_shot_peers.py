"""Rules of other authors and ours on the same features and the same test tasks: one table, with paired differences.

    python -m benchmarks.few_shot_peers --easyfsl CHECKOUT --original CHECKOUT --features FILE --out peers.json [--run RUN]

Nearest mean, BD-CSPN, LaplacianShot, TIM and PT-MAP are the classes of a checkout of easyfsl; the original SIB is trained with
a checkout of its authors' code (:mod:`benchmarks.original_sib`). They take the backbone features of FILE. Ours are learners of
run folders (``--run`` once for each), the variant that validation tasks chose, on the features of its own folder.
With ``--mapped RUN`` the peers take them as the map that RUN has learned leaves them.

What a rule leaves open (:mod:`benchmarks.few_shot_rules`) is chosen on tasks of the validation classes: from ``DRAWN``
settings drawn at random, the published one among them, the best is improved in one hyper-parameter after the other. This is
done once for all columns together ("one") and once for each column by itself ("per column"). Ours is one model for all columns:
"one" after all its K steps, "per column" after as many, from none to 2K, as are best on these tasks. Test tasks are
those of :meth:`~inference.meta.learner.FittedLearner.evaluate`.

Everything about the rules, with each task's right answers, is kept in ``--out``: started again, the script goes on where it
was, so that ``--methods`` can be run by parts, and ours compared without running the peers again. ``--way 20`` adds a column of
20-way 1-shot tasks; it is chosen on tasks with as many classes as there are for validation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.few_shot_rules import Classify, Preparation, Rule, Setting, easyfsl_rules
from benchmarks.few_shot_table import ONE, OWN, Row, key_of, note, peer_rows, summary, table, verdict
from benchmarks.original_sib import RECIPES, original_rule
from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.errors import UserError, choose
from data.items import LabelledItems
from data.seeding import mix_seed
from inference.evaluation.evaluate import batches, predictions_of, readings
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import map_items
from inference.meta.task_options import PROTOCOLS
from inference.runs.files import read_json, write_json
from inference.runs.folder import RunFolder
from inference.runs.tensors import Features, dataset_name, load_features

NAMES = ("nearest mean", "BD-CSPN", "LaplacianShot", "TIM", "PT-MAP", "original SIB")
VALIDATION_SEED, DRAWN = 2_000_003, 24
AGREEMENT = 0.999
"""Least share of predictions in which a rule in batches must be as its authors' code."""


@dataclass(frozen=True)
class Outcome:
    """Right answers of a rule in one column.

    Attributes:
        right: ``[tasks]`` int64.
        queries: per task.
        speed: tasks per second of processor time, of the authors' code; drawing the tasks is not counted.
    """

    right: Tensor
    queries: int
    speed: float

    @property
    def accuracy(self) -> Tensor:
        """Fraction of each task's queries, ``[tasks]`` float64."""
        return self.right.to(torch.float64) / self.queries


class Clocked:
    """A sampler of tasks that counts the processor seconds it takes."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.seconds = sampler, 0.0

    def sample(self, tasks: int, *, seed: int) -> Episode:
        start = time.process_time()
        episode = self.sampler.sample(tasks, seed=seed)
        self.seconds += time.process_time() - start
        return episode


def columns_of(ways: Iterable[int] = ()) -> dict[str, TaskSpec]:
    """The tasks of each column: names and shapes."""
    usual = {
        f"{shot}-shot" + ("" if balance is None else " imbalanced"): TaskSpec(shot=shot, imbalance=balance)
        for balance in PROTOCOLS.values()
        for shot in (1, 5)
    }
    return usual | {f"{way}-way 1-shot": TaskSpec(way=way) for way in ways}


def run_rule(
    classify: Classify, prepare: Preparation, setting: Setting, sampler: EpisodeSampler, tasks: int, seed: int
) -> Outcome:
    """A rule's outcome on the first ``tasks`` tasks that ``seed`` gives."""
    clocked, found, start = Clocked(sampler), [], time.process_time()
    for drawn in batches(clocked, tasks, seed):
        found.append((classify(setting, prepare(setting, drawn)) == drawn.query_y).sum(-1))
    seconds = time.process_time() - start - clocked.seconds
    return Outcome(torch.cat(found), sampler.spec.way * sampler.spec.queries, tasks / seconds)


def run_learner(learner: FittedLearner, part: LabelledItems, spec: TaskSpec, tasks: int) -> Outcome:
    """Our learner's outcome on test tasks, after all its steps; ``part`` holds backbone features."""
    return run_readings(learner, [learner.guide], part, spec, tasks, TEST_SEED)[0]


def run_readings(
    learner: FittedLearner, guides: Sequence[nn.Module], part: LabelledItems, spec: TaskSpec, tasks: int, seed: int
) -> list[Outcome]:
    """Outcomes of several readings of our learner's guide on the first ``tasks`` tasks that ``seed`` gives."""
    learner.check_way(spec.way)
    clocked, start = Clocked(EpisodeSampler(map_items(learner.space, part), spec)), time.process_time()
    found: list[list[Tensor]] = [[] for _ in guides]
    for episode, predicted in predictions_of(learner.model, guides, clocked, tasks=tasks, seed=mix_seed(seed)):
        for reading, right in zip(predicted, found, strict=True):
            right.append((reading.probabilities().argmax(-1) == episode.query_y).sum(-1).cpu())
    speed = tasks / (time.process_time() - start - clocked.seconds)
    return [Outcome(torch.cat(right), spec.way * spec.queries, speed) for right in found]


def best_steps(learner: FittedLearner, part: LabelledItems, spec: TaskSpec, tasks: int) -> int:
    """After how many of its steps, from 0 to 2K, our learner is right most often on ``tasks`` validation tasks of a column."""
    guides = readings(learner.guide, 2 * getattr(learner.guide, "steps", 0))
    outcomes = run_readings(learner, list(guides.values()), part, spec, tasks, VALIDATION_SEED)
    return max(range(len(outcomes)), key=lambda k: int(outcomes[k].right.sum()))


def validation_columns(rule: Rule, columns: Mapping[str, TaskSpec], classes: int) -> dict[str, TaskSpec]:
    """The tasks to choose by; their way is that of the column, or as many ``classes`` as there are for validation."""
    possible = {name: spec for name, spec in columns.items() if rule.any_way or spec.way <= classes}
    return {name: replace(spec, way=min(spec.way, classes)) for name, spec in possible.items()}


def tune(
    rule: Rule,
    columns: Sequence[str],
    score: Callable[[Setting, str], float],
    known: dict[str, dict[str, float]],
    *,
    seed: int = 0,
) -> tuple[Setting, dict[str, Setting]]:
    """The best setting of all columns together, and of each by itself.

    Args:
        score: from a setting and a column to its accuracy on validation tasks.
        known: scores from before, by :func:`key_of` a setting and by column, to which new ones are added.
        seed: of the settings drawn at random.
    """

    def look(setting: Setting, column: str) -> float:
        scores = known.setdefault(key_of(setting), {})
        if column not in scores:
            scores[column] = score(setting, column)
        return scores[column]

    def improve(objective: Callable[[Setting], float], settings: Iterable[Setting]) -> Setting:
        best = max(settings, key=objective)
        for name, values in rule.values.items():
            best = max([best, *({**best, name: value} for value in values)], key=objective)
        return best

    one = improve(lambda setting: sum(look(setting, column) for column in columns), drawn_settings(rule, seed))
    own = {}
    for column in columns:
        seen = [json.loads(setting) for setting, scores in known.items() if column in scores]
        own[column] = improve(lambda setting, column=column: look(setting, column), seen)
    return one, own


def drawn_settings(rule: Rule, seed: int) -> list[Setting]:
    """The published setting, and others at random; all, where there are not many."""
    settings = [{}]
    for name, values in rule.values.items():
        settings = [{**setting, name: value} for setting in settings for value in values]
    others = [setting for setting in settings if setting != rule.published()]
    return [rule.published(), *random.Random(seed).sample(others, min(DRAWN - 1, len(others)))]


def examine(
    rule: Rule,
    features: Features,
    columns: Mapping[str, TaskSpec],
    kept: dict[str, Any],
    keep: Callable[[], object] = lambda: None,
    *,
    tasks: int,
    validation_tasks: int,
    own_tasks: int,
) -> dict[str, Any]:
    """Choose a rule's settings and test them.

    Args:
        kept: what is known of the rule; it is added to, and returned.
        keep: called after every addition.
        tasks: to test on.
        validation_tasks: to choose by, of each column.
        own_tasks: the test tasks that the authors' code itself works on, where the rule is there in batches, too.
    """
    prepare, quick = Preparation(features["train"].items), rule.quick or rule.classify
    deciding = {
        name: EpisodeSampler(features["val"], spec, split="val split")
        for name, spec in validation_columns(rule, columns, features["val"].num_classes).items()
    }
    scores, tests = kept.setdefault("scores", {}), kept.setdefault("tests", {})

    def score(setting: Setting, column: str) -> float:
        keep()
        outcome = run_rule(quick, prepare, setting, deciding[column], validation_tasks, mix_seed(VALIDATION_SEED))
        return float(outcome.accuracy.mean())

    one, own = tune(rule, list(deciding), score, scores)
    own = {name: own.get(name, one) for name in columns}
    for name, spec in columns.items():
        sampler = EpisodeSampler(features["test"], spec, split="test split")
        for setting in (one, own[name]):
            tested = tests.setdefault(key_of(setting), {})
            if name not in tested:
                outcome = test(rule, prepare, setting, sampler, tasks, own_tasks)
                tested[name] = {"right": " ".join(map(str, outcome.right.tolist())), "speed": outcome.speed}
                keep()
    kept.update({ONE: one, OWN: own, "own tasks": min(own_tasks, tasks) if rule.quick else tasks})
    keep()
    return kept


def test(rule: Rule, prepare: Preparation, setting: Setting, sampler: EpisodeSampler, tasks: int, own_tasks: int) -> Outcome:
    """A rule's outcome on the test tasks: by its authors' code on the first ``own_tasks``, and where it is there in batches,
    by these on the others.

    Raises:
        RuntimeError: the batches are not the authors' rule: their answers differ.
    """
    first, seed = min(own_tasks, tasks) if rule.quick else tasks, mix_seed(TEST_SEED)
    found = run_rule(rule.classify, prepare, setting, sampler, first, seed)
    if first == tasks or rule.quick is None:
        return found
    quick = run_rule(rule.quick, prepare, setting, sampler, tasks, seed)
    differ = float((quick.right[:first] - found.right).abs().sum()) / (first * found.queries)
    if differ > 1 - AGREEMENT:
        raise RuntimeError(f"{rule.name} in batches differs from its authors' code in {differ:.2%} of the answers: {setting}")
    return replace(found, right=torch.cat([found.right, quick.right[first:]]))


def learner_rows(
    run: str, features: Features, columns: Mapping[str, TaskSpec], tasks: int, validation_tasks: int
) -> tuple[list[Row], str]:
    """Ours: the variant of a run folder that validation chose, in each column, after K steps and after as many as
    ``validation_tasks`` choose for the column; and how many those are.

    Raises:
        UserError: its folder holds features of other images.
    """
    learner, own = FittedLearner.load(run), load_features(RunFolder.existing(run).features)
    test, name = own["test"], f"ours, {Path(run).name}"
    if test.class_names != features["test"].class_names or not torch.equal(test.labels, features["test"].labels):
        raise UserError(f"`run={run}` has other test images than the feature file: give the features of the same data set")
    trained = getattr(learner.guide, "steps", 0)
    outcomes, chosen, steps = dict[str, Outcome](), dict[str, Outcome](), dict[str, int]()
    for column, spec in columns.items():
        if learner.fixed_way in (None, spec.way):
            deciding = replace(spec, way=min(spec.way, own["val"].num_classes))
            steps[column] = best_steps(learner, own["val"], deciding, validation_tasks)
            best = readings(learner.guide, steps[column])[steps[column]]
            outcomes[column] = run_learner(learner, test, spec, tasks)
            (chosen[column],) = run_readings(learner, [best], test, spec, tasks, TEST_SEED)
    rows = [
        Row(name, ONE, accuracy_of(outcomes), next(iter(outcomes.values())).speed),
        Row(f"{name}, K per column", OWN, accuracy_of(chosen)),
    ]
    return rows, f"{name}: K = {trained}; per column " + ", ".join(f"{k} in {column}" for column, k in steps.items())


def accuracy_of(outcomes: Mapping[str, Outcome]) -> dict[str, Tensor]:
    """Of each column, ``[tasks]``."""
    return {column: outcome.accuracy for column, outcome in outcomes.items()}


def mapped_features(run: str, features: Features) -> Features:
    """The ``features`` as the learned map of a run folder leaves them; ours are mapped by their own."""
    space = FittedLearner.load(run).space
    return {split: map_items(space, part) for split, part in features.items()}


def kept_results(file: Path, heading: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call kept of the rules, under the same ``heading``; nothing where there is no file.

    Raises:
        UserError: it is of other features, tasks or columns.
    """
    if not file.exists():
        return heading | {"rules": {}}
    kept = read_json(file)
    if other := [name for name, value in heading.items() if kept.get(name) != value]:
        raise UserError(f"`out={file}` has results of other {', '.join(other)}: choose another file")
    return kept


def wanted_rules(arguments: argparse.Namespace, features: Features, columns: Mapping[str, TaskSpec]) -> dict[str, Rule]:
    """The rules of the checkouts that are given, by name."""
    rules = easyfsl_rules(arguments.easyfsl) if arguments.easyfsl else []
    if arguments.original:
        recipes, tasks = arguments.original_recipes.split(","), arguments.original_tasks
        rules.append(original_rule(arguments.original, features["train"], columns, tasks=tasks, recipes=recipes))
    return {rule.name: rule for rule in rules}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True, help="feature file that the peers take")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that results are kept in")
    parser.add_argument("--easyfsl", help="checkout of easyfsl")
    parser.add_argument("--original", help="checkout of sib_meta_learn")
    parser.add_argument("--run", action="append", default=[], help="run folder of ours; any number")
    parser.add_argument("--mapped", metavar="RUN", help="run folder of ours, whose map of the features the peers take, too")
    parser.add_argument("--methods", default=",".join(NAMES), help="peers, with commas between")
    parser.add_argument("--way", type=int, action="append", default=[], help="add a column of so many classes, 1-shot")
    parser.add_argument("--tasks", type=int, default=2000, help="test tasks of each column")
    parser.add_argument("--validation-tasks", type=int, default=200, help="of each column, to choose settings by")
    parser.add_argument("--own-tasks", type=int, default=10**9, help="test tasks that easyfsl's TIM and PT-MAP work on")
    parser.add_argument("--original-tasks", type=int, default=50_000, help="that the original is trained on")
    parser.add_argument("--original-recipes", default=",".join(RECIPES), help="ways to train it, with commas between")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> str:
    """Run what is missing, and print the table; returns it."""
    arguments = parse(words)
    torch.set_num_threads(1)
    features, columns, names = load_features(arguments.features), columns_of(arguments.way), arguments.methods.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"`methods={unknown[0]}` is none: {choose(unknown[0], NAMES)}")
    heading = {
        "dataset": dataset_name(arguments.features),
        "features": hashlib.sha256(Path(arguments.features).read_bytes()).hexdigest(),
        "tasks": arguments.tasks,
        "validation tasks": arguments.validation_tasks,
        "columns": {name: asdict(spec) for name, spec in columns.items()},
        "mapped": None,
    }
    if arguments.mapped:
        features = mapped_features(arguments.mapped, features)
        heading["mapped"] = hashlib.sha256(features["test"].items.numpy().tobytes()).hexdigest()
    kept, rules = kept_results(arguments.out, heading), wanted_rules(arguments, features, columns)
    unfinished = [name for name in names if ONE not in kept["rules"].get(name, {})]
    if missing := [name for name in unfinished if name not in rules]:
        raise UserError(f"{missing[0]} needs a checkout: give `{'original' if missing[0] == NAMES[-1] else 'easyfsl'}=FOLDER`")
    found = [learner_rows(run, features, columns, arguments.tasks, arguments.validation_tasks) for run in arguments.run]
    ours = [row for rows, _ in found for row in rows]
    counts = {"tasks": arguments.tasks, "validation_tasks": arguments.validation_tasks, "own_tasks": arguments.own_tasks}
    for name in (name for name in names if name in unfinished):
        about = kept["rules"].setdefault(name, {})
        examine(rules[name], features, columns, about, lambda: write_json(arguments.out, kept), **counts)
    peers = [row for name in names for row in peer_rows(name, kept["rules"][name], columns)]
    kept["ours"] = {row.name: summary(row, peers) for row in ours}
    write_json(arguments.out, kept)
    shown = [table(peers, ours, list(columns)), *(verdict(row, peers, list(columns)) for row in ours)]
    shown += [steps for _, steps in found] + [note(name, kept["rules"][name], arguments.tasks) for name in names]
    print("\n".join(shown))
    return shown[0]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
