"""What is left of trained steps: those that cost more than they bring are shrunk or left out, so that more never cost more."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import evaluate, readings
from inference.meta.settings import MetaSchedule
from inference.meta.variants import Variant

FACTORS = (0.5, 0.25)
"""What a step that costs more than it brings is shrunk by before it is left out."""


def objective_on(objective: RateDistortionModule, guide: nn.Module, tasks: Any, schedule: MetaSchedule) -> float:
    """distortion + β · rate of a reading of the guide, nats per task, on the schedule's number of tasks of a sampler."""
    scores = evaluate(objective.model, guide, tasks, tasks=schedule.validation_tasks, seed=schedule.seed)
    return scores.distortion + objective.elbo.beta * (scores.rate or 0.0)


def keep_steps_that_pay(objective: RateDistortionModule, tasks: Any, schedule: MetaSchedule, name: str) -> bool:
    """K steps contain K − 1, the last one's size zero: a step after which the objective is worse than before it is made half or
    a quarter as large, or left out, whichever is best.

    Below β = 1 all steps stay: there the objective is no bound, and steps that serve predictions may cost more than they bring.

    Args:
        tasks: sampler of training and validation tasks.
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


def guess_where_it_is_cheaper(objective: RateDistortionModule, training: Any, schedule: MetaSchedule, name: str) -> bool:
    """Where β is so large that no nat pays, the objective's minimum is q = p with equal probabilities: a guide that does no
    better than that on the very classes it was trained on is put there exactly.

    Args:
        training: sampler of training tasks.
        name: of the guide, in what is printed.

    Returns:
        whether it was.
    """
    guide: Any = objective.guide
    if getattr(guide, "gate", None) is None:
        return False
    task = training.sample(1, seed=schedule.seed)
    guess = task.query_y.numel() * math.log(task.way)
    found = objective_on(objective, guide, training, schedule)
    if found < guess:
        return False
    print(f"{name}: {found:.2f} nats per training task where guessing costs {guess:.2f}: its posterior is the prior")
    guide.stay_at_prior()
    guide.predictor.flatten()
    return True


def keep_none_where_it_is_better(
    objectives: Mapping[Variant, RateDistortionModule], variant: Variant, tasks: Any, schedule: MetaSchedule
) -> list[Variant]:
    """Where the objective after K steps is worse than that of the reference without steps, which has a prior and scales of its
    own, the guide with steps becomes that reference.

    Args:
        objectives: what has been trained.
        variant: just trained; nothing happens until its partner is, too.
        tasks: sampler of training and validation tasks, in the variants' feature space.

    Returns:
        the variants that changed.
    """
    partners = [v for v in objectives if replace(v, steps=0, reference=False) == replace(variant, steps=0, reference=False)]
    if len(partners) < 2:
        return []
    none, some = sorted(partners, key=lambda v: v.steps)
    without, with_steps = (objective_on(objectives[v], objectives[v].guide, tasks, schedule) for v in (none, some))
    if with_steps <= without:
        return []
    print(f"{some.name}: {with_steps:.2f} nats per task with its steps and {without:.2f} without: they are left out")
    kept = {name: value for name, value in objectives[none].state_dict().items() if ".rule." not in name}
    objectives[some].load_state_dict(kept, strict=False)
    rule: Any = objectives[some].guide.rule
    rule.stand_still()
    return [some]
