"""MAML on sinusoids, as in its paper: squared error of ten-shot tasks after 1, 5 and 10 steps.

    taskset -c 1 python -m benchmarks.sinusoids --minutes 5.5

The setting of Finn et al. 2017, section 5.1: a perceptron with two hidden layers of 40 rectified units, raw inputs, ten points
of support, 25 tasks an update, Adam with 1e-3, steps of size α = 0.01 on the mean squared error, no noise. Unlike theirs the
step size of Adam falls to 0 by a cosine, and every third update takes K = 5 steps and not one, so that more steps than one are
good for all tasks; ``--steps 1`` is the paper's. Test: 1000 tasks of their own, whose queries have no noise. Time is the
process's own, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from pyro.distributions import validation_enabled
from torch import Tensor

from data.curves import raw_sinusoid_tasks
from data.episodes import Episode
from data.seeding import mix_seed, seeded
from inference.evaluation.predictive import predictive
from inference.meta.regression_fits import Fit, Setup, fit_on_tasks
from inference.meta.regression_methods.maml import MamlOptions, build_steps
from inference.meta.regression_tasks import Problem
from inference.meta.settings import GuideSettings, MetaSchedule

TESTED = (1, 5, 10)
TEST, QUERIES, TEST_QUERIES = 7, 10, 100


def draw(count: int, seed: int, queries: int = QUERIES) -> Episode:
    """So many tasks without noise."""
    return raw_sinusoid_tasks(count, support=10, queries=queries, noise=0.0, seed=seed)


@torch.no_grad()
def squared_errors(fit: Fit, steps: int, tasks: int, seed: int) -> Tensor:
    """Mean squared error of each of so many test ``tasks`` after so many ``steps``, ``[tasks]``; infinite for runaways."""
    episode = draw(tasks, mix_seed(seed, TEST), TEST_QUERIES)
    with validation_enabled(False):  # of a task whose steps run away nothing is finite
        predicted = predictive(fit.model, fit.guide.after(steps), fit.embed(episode))
    return (predicted.labels.mean[0] - episode.query_y).square().mean(-1).nan_to_num(torch.inf)


def report(fit: Fit, tasks: int, seed: int) -> str:
    """Mean, its 95 % half-width, and median after each number of steps; where tasks run away, mean of the others and how many
    do."""
    cells = []
    for steps in TESTED:
        errors = squared_errors(fit, steps, tasks, seed)
        wild = int(errors.isinf().sum())
        if wild:
            cells.append(
                f"{steps}: {errors[errors.isfinite()].mean():.3f} without {wild} that ran away (median {errors.median():.3f})"
            )
            continue
        cells.append(f"{steps}: {errors.mean():.3f} ± {1.96 * errors.std() / tasks**0.5:.3f} (median {errors.median():.3f})")
    return "MSE after " + ", ".join(cells)


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.5, help="of training, roughly")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 1, 5], help="K in training, in turns")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--tasks", type=int, default=1000, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)

    def schedule(updates: int) -> MetaSchedule:
        return MetaSchedule(updates * given.batch, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed)

    def built(plan: MetaSchedule) -> Fit:
        with seeded(given.seed):
            fit = build_steps(
                Setup(Problem("sinusoids"), GuideSettings(), plan, QUERIES),
                MamlOptions(test_steps=max(TESTED)),
            )
        return fit

    def turns(fit: Fit) -> Callable[[int], None]:
        return lambda step: setattr(fit.guide, "steps", given.steps[step % len(given.steps)])

    begun = time.process_time()
    trial = built(schedule(200))
    fit_on_tasks(trial, draw, schedule(200), watch=turns(trial))  # how many updates there is time for
    updates = int(60 * given.minutes / (time.process_time() - begun) * 200)
    fit, begun = built(schedule(updates)), time.process_time()
    turn = turns(fit)

    def watch(step: int) -> None:
        turn(step)
        if step and step % max(1, updates // 10) == 0:
            print(f"{step:6d} updates, {time.process_time() - begun:5.0f} s: {report(fit, 200, given.seed)}", flush=True)

    fit_on_tasks(fit, draw, schedule(updates), watch=watch)
    seconds = time.process_time() - begun
    print(f"{updates} updates in {seconds:.0f} s of processor time, K = {given.steps}, seed {given.seed}")
    print(report(fit, given.tasks, given.seed))


if __name__ == "__main__":
    main()
