"""The objective of a SIB sweep after every step, with intervals: ``python -m benchmarks.rate_distortion RUN``.

RUN is a folder of ``python -m inference.svi_sib`` that swept over β. Each row is one β and predictor on the run's test tasks:
distortion + β · rate of the guide trained with K = 0, of the other guide after each of its steps, and the differences of
neighbouring steps on the same tasks, with 95 % intervals.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from data.episodes import EpisodeSampler
from data.seeding import mix_seed
from inference.evaluation.evaluate import predictions, readings
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.tables import align
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.meta.mapping import map_items
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features

TASKS = 1000


@torch.no_grad()
def objectives(learner: FittedLearner, run: RunFolder) -> dict[int, Tensor]:
    """Steps -> distortion + β · rate of every test task, ``[tasks]``."""
    part = map_items(learner.space, load_features(run.features)["test"])
    sampler = EpisodeSampler(part, learner.spec, split="test split")
    found = {}
    for k, guide in readings(learner.guide).items():
        parts = []
        for episode, predicted in predictions(learner.model, guide, sampler, tasks=TASKS, seed=mix_seed(TEST_SEED)):
            rate = 0.0 if predicted.rate is None else predicted.rate
            parts.append(predicted.distortion(episode.query_y) + (learner.variant.beta or 0.0) * rate)
        found[k] = torch.cat(parts)
    return found


def cell(values: Tensor) -> str:
    """Mean and interval."""
    return f"{float(values.mean()):.2f} ± {confidence_interval(values):.2f}"


def main(arguments: Sequence[str]) -> None:
    run = RunFolder.existing(arguments[0])
    names = sorted(path.stem for path in run.checkpoints.glob("*-beta*-k*.safetensors") if "lwof" not in path.stem)
    learners = {name: FittedLearner.load(run, name) for name in names}
    swept = sorted((v.predictor, v.beta, v.steps) for v in (learner.variant for learner in learners.values()) if v.steps)
    steps = max(k for *_, k in swept)
    later = range(1, steps + 1)
    table = [["predictor", "β", "K = 0, own", *(f"K = {k}" for k in range(steps + 1)), *(f"{k} less {k - 1}" for k in later)]]
    for predictor, beta, trained in swept:
        own = objectives(learners[f"{predictor}-beta{beta:g}-k0"], run)[0]
        read = objectives(learners[f"{predictor}-beta{beta:g}-k{trained}"], run)
        less = [read[1] - own, *(read[k] - read[k - 1] for k in later[1:])]
        table.append([predictor, f"{beta:g}", *map(cell, (own, *read.values(), *less))])
    print(align(table))
    print("own: trained with K = 0, which 1 is less of; the other columns are one guide trained with all its steps")


if __name__ == "__main__":
    main(sys.argv[1:])
