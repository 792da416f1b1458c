"""Train a checkout of the original SIB code on our feature file, and time its step beside ours.

    python benchmarks/original_sib.py --original PATH --features FILE --tasks 16000

PATH is a checkout of the authors' release (github.com/hushell/sib_meta_learn); only its ``sib.py`` and ``networks.py`` are
imported. Training follows its configuration: one task per step, SGD 1e-3, Nesterov momentum 0.9, weight decay 5e-4; then Adam
1e-3 with eight tasks per step, which converges sooner. Both are tested on the same tasks as ours.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.items import LabelledItems
from data.seeding import mix_seed
from inference.evaluation.metrics import confidence_interval
from inference.meta.learner import TEST_SEED, build_objective
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, settings
from inference.meta.stages import all_variants, feature_space, map_items
from inference.runs.tensors import load_features
from models.networks.feature_space import FeatureSpace


def train_original(classifier, sampler: EpisodeSampler, *, tasks: int, batch: int, optimizer) -> float:
    """Train in place; returns tasks per second."""
    start = time.perf_counter()
    for step in range(tasks // batch):
        episode = sampler.sample(batch, seed=mix_seed(0, step))
        scores = classifier(episode.support_x, episode.support_y, episode.query_x, 1e-3)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), episode.query_y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tasks / (time.perf_counter() - start)


def test_original(classifier, sampler: EpisodeSampler, tasks: int) -> tuple[float, float]:
    """Accuracy and 95 % half-width; one task at a time, since its batch norm mixes the tasks of a batch."""
    right = []
    for start in range(0, tasks, 50):
        episode = sampler.sample(50, seed=mix_seed(mix_seed(TEST_SEED), start))
        for t in range(50):
            one = episode.tasks(slice(t, t + 1))
            scores = classifier(one[0], one[1], one[2], 1e-3)
            right.append((scores.argmax(-1) == one[3]).float().mean())
    values = torch.stack(right)[:tasks]
    return float(values.mean()), confidence_interval(values)


def time_ours(features: LabelledItems, gradient: str, batch: int, tasks: int, predictor: str, posterior: str) -> float:
    """Tasks per second of our training step: sampling, forward, backward, Adam."""
    options = SibOptions(posterior=posterior, predictor=predictor, gradient=gradient, beta=0.1)
    chosen, variant = settings(GuideSettings, options), all_variants(options)[0]
    space, means = feature_space(chosen, predictor, features)
    bank, objective = map_items(space, features), build_objective(chosen, variant, means)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 5e-3)
    sampler = EpisodeSampler(bank, TaskSpec())
    for step in range(-5, tasks // batch):
        if step == 0:
            start = time.perf_counter()
        loss = objective(*sampler.sample(batch, seed=mix_seed(0, step))) / batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tasks / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--original", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--tasks", type=int, default=16000)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.original)
    from networks import dni_linear  # noqa: F401 (fails early, with a clear message, where the checkout is wrong)
    from sib import ClassifierSIB

    features = load_features(arguments.features)
    space = FeatureSpace(features["train"].items.shape[-1])
    banks = {split: map_items(space, part) for split, part in features.items()}
    train, test = (EpisodeSampler(banks[s], TaskSpec()) for s in ("train", "test"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    recipes = {
        "SGD, 1 task per step": (1, lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)),
        "Adam, 8 tasks per step": (8, lambda p: torch.optim.Adam(p, 1e-3)),
    }
    for name, (batch, make) in recipes.items():
        torch.manual_seed(0)
        classifier = ClassifierSIB(5, space.num_outputs, 3)
        speed = train_original(classifier, train, tasks=arguments.tasks, batch=batch, optimizer=make(classifier.parameters()))
        accuracy, half_width = test_original(classifier, test, 1000)
        print(f"original, {name}: {100 * accuracy:.2f} ± {100 * half_width:.2f} %, {speed:.0f} tasks/s")
    for predictor, posterior in (("cosine", "delta"), ("distance", "gaussian")):
        for gradient in ("mlp", "equivariant"):
            for batch in (16, 64, 256):
                speed = time_ours(features["train"], gradient, batch, 4096, predictor, posterior)
                print(f"ours, {predictor}, {posterior}, {gradient}, {batch} tasks per step: {speed:.0f} tasks/s")


if __name__ == "__main__":
    main()
