"""Tasks with three right answers: MAML, MAML with noise and PLATIPUS on letters with three attributes.

    python -m benchmarks.ambiguity [--tasks 64000] [--seed 0] [--rows maml platipus-0.15]

The support of a test task shows letters that have all of three attributes (ink, slant, stroke) against letters that have none;
what is asked is whether a letter has both of a pair, and three pairs fit (``data.ambiguous.AttributeSampler`` with
``contested``). Half of the training tasks are of this kind, each with the queries of one pair, drawn at random; of the other
half the support tells the pair. Training, validation and test letters are of different scripts.

A small convolutional network is trained once to tell the eight kinds of training letters apart. Its features are then kept, and
each row adapts a linear head on them: the same features, tasks and steps. Source of the comparison: Finn, Xu and Levine 2018,
"Probabilistic model-agnostic meta-learning", table 1; a KL weight κ beside the mean loss of n queries is β = n κ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ambiguous import NUM_ATTRIBUTES, AttributeSampler
from data.episodes import Episode
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed, seeded
from data.sources.glyph_attributes import load_attributed_glyphs
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
from inference.diagnostics.ambiguity import ambiguity
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.evaluate import predictions
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.tables import Column, format_table
from inference.meta.platipus import build_platipus
from inference.meta.regression_guides import descend
from inference.meta.settings import MetaSchedule
from models.likelihoods import CategoricalLikelihood
from models.networks.backbones import build_backbone
from models.networks.feature_space import FeatureSpace
from models.networks.layers import embed
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

WAY, SHOT, QUERIES = 2, 5, 15
BACKBONE, EPOCHS, BATCH = "conv4-16", 6, 64
STEPS, SIZE, SCALE = 5, 1.0, 0.3
ROWS = ("maml", "noise-0.1", "noise-0.3", "noise-0.5", "noise-1", "platipus-0.05", "platipus-0.15", "platipus-0.5")
"""MAML; MAML with noise of a standard deviation; PLATIPUS with a KL weight beside a mean loss."""
TEST_TASKS, DRAWS, FEW = 500, 16, 4


class OnePair:
    """Tasks with the queries of one pair, a part of them ambiguous.

    Args:
        source: features of the eight kinds.
    """

    def __init__(self, source: LabelledItems) -> None:
        how: dict[str, Any] = {"shot": SHOT, "queries": QUERIES, "contested": True}
        self.plain, self.ambiguous = (AttributeSampler(source, ambiguous=yes, **how) for yes in (False, True))

    def sample(self, tasks: int, *, seed: int) -> Episode:
        """Half of each kind."""
        plain = self.plain.sample(tasks - tasks // 2, seed=mix_seed(seed, 0))
        other = self.ambiguous.sample(tasks // 2, seed=mix_seed(seed, 1))
        block = torch.randint(NUM_ATTRIBUTES, (tasks // 2,), generator=torch.Generator().manual_seed(mix_seed(seed, 2)))
        x, y = (part.unflatten(1, (NUM_ATTRIBUTES, -1)) for part in (other.query_x, other.query_y))
        rows = torch.arange(tasks // 2)
        other = other._replace(query_x=x[rows, block], query_y=y[rows, block])
        return Episode(*(torch.cat(both) for both in zip(plain[:4], other[:4], strict=True)), WAY)


def features_of(images: ImageSplits, seed: int) -> dict[str, LabelledItems]:
    """Discriminant directions of the features of a network that tells the eight kinds of training letters apart, and 1."""
    with seeded(seed):
        backbone: Any = build_backbone(BACKBONE, images.image_shape)
        network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 2**NUM_ATTRIBUTES))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        pixels, labels = images.train.items.float() / 255, images.train.labels
        for _ in range(EPOCHS):
            for some in torch.randperm(len(pixels)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(pixels[some]), labels[some]).backward()
                optimizer.step()
    backbone.eval()
    found = {split: embed(backbone, images[split].items.float() / 255) for split in ("train", "val", "test")}
    space = FeatureSpace(backbone.num_features, 2**NUM_ATTRIBUTES - 1).fit(found["train"], labels)
    parts = {}
    for split, part in found.items():
        mapped = space(part)
        items = torch.cat([4 * mapped, torch.ones_like(mapped[:, :1])], -1)
        parts[split] = LabelledItems(items, images[split].labels, images[split].class_names)
    return parts


def build(row: str, num_features: int) -> RateDistortionModule:
    """Model, guide and objective of a row of the table."""
    predictor, start = LinearPredictor(1.0, learned=False), LearnedStart(0.01 * torch.randn(WAY, num_features))
    gradient, likelihood = ExactGradient(CategoricalLikelihood()), CategoricalLikelihood()
    if row == "maml":
        prior = GaussianPrior(torch.zeros(num_features), torch.ones(num_features), learned=False)
        rule = GradientStep(STEPS, num_features, size=SIZE, learned=True, point=True)
        how: dict[str, Any] = {"on": Evidence.SUPPORT, "reduction": Reduction.MEAN, "family": Family.DELTA, "beta": 0.0}
        start.log_scale.requires_grad_(False)
        guide = UnrolledGuide(prior, predictor, start, gradient, rule, steps=STEPS, **how)
        return RateDistortionELBO(beta=0.0)(EmpiricalBayesModel(prior, predictor, likelihood), guide)
    name, _, number = row.partition("-")
    noise_only = name == "noise"
    how = {"steps": STEPS, "size": SIZE, "learned": True, "prior_size": SIZE, "noise_only": noise_only}
    how["scale"] = float(number) if noise_only else SCALE
    model, informed = build_platipus(predictor, start, gradient, likelihood, **how)
    return RateDistortionELBO(beta=0.0 if noise_only else WAY * QUERIES * float(number))(model, informed)


def train(objective: RateDistortionModule, tasks: OnePair, schedule: MetaSchedule) -> None:
    """Adam, with a cosine decay, in place."""
    quick = {id(p) for name, p in objective.named_parameters() if name.rpartition(".")[2].startswith("log_")}
    learned = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if (id(p) in quick) is yes], "lr": rate * schedule.learning_rate}
        for yes, rate in ((False, 1.0), (True, schedule.scale_speed))
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    descend(lambda episode: objective(*episode), tasks.sample, optimizer, schedule)


class Row(NamedTuple):
    """A row of the table: its name, mean and half-width of the 95 % interval over tasks of each measure, and seconds."""

    name: str
    measures: Mapping[str, tuple[float, float]]
    seconds: float


def measure(objective: RateDistortionModule, test: LabelledItems, seed: int) -> dict[str, tuple[float, float]]:
    """Of ambiguous test tasks :class:`~inference.diagnostics.ambiguity.Ambiguity` with all draws, coverage with a few of them
    too, and of tasks whose support tells the pair the accuracy."""
    how: dict[str, Any] = {"shot": SHOT, "queries": QUERIES, "contested": True}
    parts: dict[str, list[Tensor]] = {}
    drawn: dict[str, Any] = {"tasks": TEST_TASKS, "seed": seed, "num_samples": DRAWS}
    for yes in (True, False):
        sampler = AttributeSampler(test, ambiguous=yes, **how)
        for episode, predicted in predictions(objective.model, objective.guide, sampler, **drawn):
            logits = predicted.labels.logits
            if yes:
                found = ambiguity(logits, episode.query_y)._asdict()
                found["few"] = ambiguity(logits[:: DRAWS // FEW], episode.query_y).coverage
            else:
                found = {"plain": (predicted.probabilities().argmax(-1) == episode.query_y).float().mean(-1)}
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
    return {name: (float(torch.cat(part).mean()), confidence_interval(torch.cat(part))) for name, part in parts.items()}


def cell(title: str, name: str, digits: int = 2, factor: float = 1.0) -> Column:
    """A column of a measure by ``name``, mean ± half-width."""

    def text(row: Row) -> str:
        mean, half = (factor * number for number in row.measures[name])
        return f"{mean:.{digits}f} ± {half:.{digits}f}"

    return Column(title, text)


COLUMNS = (
    Column("method", lambda r: r.name, left=True),
    cell("accuracy %", "accuracy", 1, 100),
    cell(f"coverage, {FEW} draws", "few"),
    cell(f"{DRAWS} draws", "coverage"),
    cell("reached %", "reached", 1, 100),
    cell("NLL", "nll", 3),
    cell("each query's", "marginal_nll", 3),
    cell("unambiguous %", "plain", 1, 100),
    Column("seconds", lambda r: f"{r.seconds:.0f}"),
)


def main() -> None:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=64000, help="training tasks of each row")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    given = parser.parse_args()
    parts = features_of(load_attributed_glyphs(seed=given.seed), given.seed)
    tasks, rows = OnePair(parts["train"]), []
    for name in given.rows:
        with seeded(given.seed):
            objective = build(name, parts["train"].items.shape[-1])
        begun = time.perf_counter()
        train(objective, tasks, MetaSchedule(given.tasks, batch=32, learning_rate=given.learning_rate, seed=given.seed))
        seconds = time.perf_counter() - begun
        rows.append(Row(name, measure(objective, parts["test"], mix_seed(given.seed, 1)), seconds))
        print(format_table(rows, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
