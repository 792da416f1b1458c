"""What is left of trained steps: those that cost more than they bring are shrunk or left out, so that more never cost more."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import nn

from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import evaluate, readings
from inference.meta.settings import MetaSchedule
from inference.meta.tasks import Kinds
from inference.meta.variants import Variant

FACTORS = (0.5, 0.25)
"""What a step that costs more than it brings is shrunk by before it is left out."""


def objective_on(objective: RateDistortionModule, guide: nn.Module, kinds: Kinds, schedule: MetaSchedule) -> float:
    """distortion + β · rate of a reading of the guide, nats per task: the mean over kinds of tasks, the schedule's number of
    validation tasks in all."""
    found = []
    for tasks in kinds:
        number = max(1, schedule.validation_tasks // len(kinds))
        scores = evaluate(objective.model, guide, tasks, tasks=number, seed=schedule.seed)
        found.append(scores.distortion + objective.elbo.beta * (scores.rate or 0.0))
    return fmean(found)


def guess_on(kinds: Kinds, seed: int) -> float:
    """What equal probabilities cost, nats per task: the mean over ``kinds`` of tasks."""
    tasks = [sampler.sample(1, seed=seed) for sampler in kinds]
    return fmean(task.query_y.numel() * math.log(task.way) for task in tasks)


def keep_steps_that_pay(objective: RateDistortionModule, tasks: Kinds, schedule: MetaSchedule, name: str) -> bool:
    """K steps contain K − 1, the last one's size zero: a step after which the objective is worse than before it is made half or
    a quarter as large, or left out, whichever is best.

    Below β = 1 all steps stay: there the objective is no bound, and steps that serve predictions may cost more than they bring.

    Args:
        tasks: training and validation tasks.
        name: of the guide, in what is printed.

    Returns:
        whether a step was changed.
    """
    if objective.elbo.beta < 1 or not getattr(objective.guide, "steps", 0):
        return False
    start, *later = readings(objective.guide).values()
    before, changed = objective_on(objective, start, tasks, schedule), False
    rule: Any = objective.guide.rule
    for index, guide in enumerate(later):
        after = objective_on(objective, guide, tasks, schedule)
        if after > before:
            trained, sizes = copy.deepcopy(rule.state_dict()), {0.0: before}
            for factor in FACTORS:
                rule.shrink(index, factor)
                sizes[factor] = objective_on(objective, guide, tasks, schedule)
                rule.load_state_dict(trained)
            best = min(sizes, key=sizes.__getitem__)
            rule.shrink(index, best)
            what = f"made {best:g} times as large ({sizes[best]:.2f})" if best else "left out"
            print(f"{name}: step {index + 1} takes the objective from {before:.2f} to {after:.2f} nats per task: it is {what}")
            after, changed = sizes[best], True
        before = after
    return changed


def guess_where_it_is_cheaper(objective: RateDistortionModule, training: Kinds, schedule: MetaSchedule, name: str) -> bool:
    """Where β is so large that no nat pays, the objective's minimum is q = p with equal probabilities: a guide that does no
    better than that on the very classes it was trained on is put there exactly.

    Args:
        training: training tasks.
        name: of the guide, in what is printed.

    Returns:
        whether it was.
    """
    guide: Any = objective.guide
    if getattr(guide, "gate", None) is None:
        return False
    guess = guess_on(training, schedule.seed)
    found = objective_on(objective, guide, training, schedule)
    if found < guess:
        return False
    said = f"{name}: {found:.2f} nats per training task where guessing costs {guess:.2f}: its posterior is now the prior"
    print(f"{said}, which guesses (too short a training ends so, and too large a β)")
    guide.stay_at_prior()
    guide.predictor.flatten()
    return True


def keep_none_where_it_is_better(
    fitted: Mapping[Variant, nn.ModuleDict], variant: Variant, tasks: Callable[[Variant], Kinds], schedule: MetaSchedule
) -> list[Variant]:
    """Where the objective after K steps is worse than that of the reference without steps, which has a feature space, a prior
    and scales of its own, the guide with steps becomes that reference.

    Args:
        fitted: what has been trained: the part ``objective``, and what else was trained with it.
        variant: just trained; nothing happens until its partner is, too.
        tasks: training and validation tasks, in each variant's feature space.

    Returns:
        the variants that changed.
    """
    partners = [v for v in fitted if replace(v, steps=0, reference=False) == replace(variant, steps=0, reference=False)]
    if len(partners) < 2:
        return []
    none, some = sorted(partners, key=lambda v: v.steps)
    objectives: dict[Variant, Any] = {v: fitted[v]["objective"] for v in (none, some)}
    without, with_steps = (objective_on(objectives[v], objectives[v].guide, tasks(v), schedule) for v in (none, some))
    if with_steps <= without:
        return []
    print(f"{some.name}: {with_steps:.2f} nats per task with its steps and {without:.2f} without: they are left out")
    kept = {name: value for name, value in fitted[none].state_dict().items() if ".rule." not in name}
    fitted[some].load_state_dict(kept, strict=False)
    objectives[some].guide.rule.stand_still()
    return [some]
