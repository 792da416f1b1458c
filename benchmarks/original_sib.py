"""The original SIB code on our feature files: how it is trained and read.

It is imported from a checkout of the authors' release (github.com/hushell/sib_meta_learn), of which ``sib.py`` and
``networks.py`` are needed. Training follows its configuration: one task per step, SGD 1e-3, Nesterov momentum 0.9, weight
decay 5e-4; or else Adam 1e-3 with eight tasks per step, which converges sooner. What it reaches is in
:mod:`benchmarks.few_shot_peers`, its speed in :mod:`benchmarks.speed.sib`.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.few_shot_rules import Rule, Setting
from data.episodes import Episode, EpisodeSampler, TaskSpec
from data.errors import UserError, choose
from data.items import LabelledItems
from data.seeding import mix_seed, seeded

STEPS, STEP_SIZE = 3, 1e-3
Recipe = tuple[int, Callable[..., torch.optim.Optimizer]]
"""Tasks per step, and the optimizer of parameters."""
RECIPES: dict[str, Recipe] = {
    "sgd": (1, lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)),
    "adam": (8, lambda p: torch.optim.Adam(p, 1e-3)),
}
MIXED = "all kinds"


def original_rule(
    checkout: str, base: LabelledItems, kinds: Mapping[str, TaskSpec], *, tasks: int, recipes: Sequence[str] = tuple(RECIPES)
) -> Rule:
    """The original as a rule, trained on ``base`` classes when it is first asked for: by each recipe, on tasks of one kind or
    of all.

    Args:
        checkout: a folder.
        base: backbone features; the original normalises them itself.
        kinds: names and shapes of tasks. It is trained on all of those with the classes of the first, in equal shares, or on
            balanced ones of one kind; for another number of classes on that kind of task.
        tasks: to train on.
        recipes: names in ``RECIPES`` to choose from.

    Raises:
        UserError: an unknown recipe.
    """
    if unknown := [recipe for recipe in recipes if recipe not in RECIPES]:
        raise UserError(f"`original_recipes={unknown[0]}` is none: {choose(unknown[0], RECIPES)}")
    build, fitted = classifier_of(checkout), dict[str, nn.Module]()
    way = next(iter(kinds.values())).way
    usual = {name: spec for name, spec in kinds.items() if spec.way == way}

    def classify(setting: Setting, episode: Episode) -> Tensor:
        own = list(usual.values()) if setting["trained on"] == MIXED else [usual[setting["trained on"]]]
        if episode.way != way:
            own = [replace(own[0], way=episode.way or way)]
        key = json.dumps([setting, episode.way])
        if key not in fitted:
            with seeded(0):
                fitted[key] = build(own[0].way, base.items.shape[-1], STEPS)
                samplers = [EpisodeSampler(base, spec, split="train split") for spec in own]
                train_original(fitted[key], samplers, tasks=setting["tasks"], recipe=RECIPES[setting["recipe"]])
        return one_by_one(fitted[key], episode)

    balanced = [name for name, spec in usual.items() if spec.balanced]
    values = {"recipe": tuple(recipes), "trained on": (*balanced, MIXED), "tasks": (tasks,)}
    return Rule("original SIB", values, classify, any_way=False)


def classifier_of(checkout: str) -> Callable[[int, int, int], nn.Module]:
    """The class of the original's classifier, of (classes, features, steps).

    Raises:
        UserError: it is not there.
    """
    warnings.filterwarnings("ignore", "This overload of baddbmm is deprecated")
    sys.path.insert(0, checkout)
    try:
        return importlib.import_module("sib").ClassifierSIB
    except (ImportError, AttributeError) as error:
        raise UserError(f"`original={checkout}` is no checkout of sib_meta_learn that can be imported: {error}") from error
    finally:
        sys.path.remove(checkout)


def train_original(
    classifier: nn.Module,
    samplers: Sequence[EpisodeSampler],
    *,
    tasks: int,
    recipe: Recipe,
    seed: int = 0,
    after: Callable[[int], object] = lambda tasks: None,
) -> None:
    """Train in place, with tasks of the ``samplers`` in turn, step by step.

    Args:
        tasks: in all; as many as there are whole steps for.
        recipe: how many of them a step takes, and by which optimizer.
        seed: of the tasks.
        after: called after every step with the number of tasks so far.
    """
    batch, optimizer_of = recipe
    optimizer = optimizer_of(classifier.parameters())
    for step in range(tasks // batch):
        episode = samplers[step % len(samplers)].sample(batch, seed=mix_seed(seed, step))
        scores = classifier(*episode[:3], STEP_SIZE)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), episode.query_y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after((step + 1) * batch)


def one_by_one(classifier: nn.Module, episode: Episode) -> Tensor:
    """Classes ``[tasks, query]``, one task at a time, since its batch norm mixes the tasks of a batch."""
    parts = (episode.tasks(slice(t, t + 1)) for t in range(len(episode.query_x)))
    return torch.cat([classifier(*part[:3], STEP_SIZE).argmax(-1) for part in parts])
