"""Tasks with three right answers: MAML, MAML with noise and PLATIPUS on letters with three attributes.

    python -m benchmarks.ambiguity runs/ambiguity --seeds 0 1 2
    python -m benchmarks.ambiguity runs/ambiguity --whole

The support of a test task shows letters that have all of three attributes (ink, slant, stroke) against letters that have none;
what is asked is whether a letter has both of a pair, and three pairs fit (``data.ambiguous.AttributeSampler`` with
``contested``). Half of the training tasks are of this kind, each with the queries of one pair, drawn at random; of the other
half the support tells the pair. Training, validation and test letters are of different scripts.

A small convolutional network is trained once to tell the eight kinds of training letters apart. Its features are then kept, and
each row adapts a linear head on them: the same features, tasks and steps. With ``--whole`` each row adapts all weights of the
network, which start as it was trained, and whose batch norm keeps the statistics of that training.

Rows are kept in the folder as they come, ``rows.json`` or ``whole.json``: started again, the script goes on where it was. It
prints a table for each seed and one of all, and draws ``frontier.png``. Source of the comparison: Finn, Xu and Levine 2018,
"Probabilistic model-agnostic meta-learning", table 1; a KL weight κ beside the mean loss of n queries is β = n κ.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ambiguity_table import COLUMNS, FEW, KAPPA, LEARNED, MANY, ROWS, Row, frontier, seed_by_seed
from data.ambiguous import NUM_ATTRIBUTES, AttributeSampler, OnePairSampler
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed, seeded
from data.sources.glyph_attributes import load_attributed_glyphs
from guides.tasks.families import Family
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import Evidence, Reduction, UnrolledGuide
from inference.diagnostics.ambiguity import ambiguity, expected_coverage
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.evaluate import predictions
from inference.evaluation.metrics import confidence_interval
from inference.evaluation.tables import format_table
from inference.meta.platipus import build_platipus
from inference.meta.regression_guides import descend
from inference.meta.settings import MetaSchedule
from inference.runs.files import write_json
from inference.runs.study import save_figure
from models.likelihoods import CategoricalLikelihood
from models.networks.backbones import build_backbone
from models.networks.feature_space import FeatureSpace
from models.networks.functional import FunctionalNetwork
from models.networks.layers import embed
from models.networks.norms import Norm, with_norm
from models.tasks.adapted import AdaptedModel
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.predictors import LinearPredictor, Predictor
from models.tasks.priors import GaussianPrior

WAY, SHOT, QUERIES = 2, 5, 15
BACKBONE, EPOCHS, BATCH, STEPS = "conv4-16", 6, 64, 5
WHOLE_ROWS = ("maml", "platipus-0.05", "platipus-0.15", LEARNED)


class Setting(NamedTuple):
    """What is adapted, and how long it is trained and tested.

    Attributes:
        parts: items by split.
        make: ŷ, and the start of its weights.
        size: initial step size.
        scale: initial standard deviation of PLATIPUS.
        tests: test tasks of each kind.
        draws: posterior draws, in pairs on both sides of their mean.
        schedule: of training.
    """

    parts: Mapping[str, LabelledItems]
    make: Callable[[], tuple[Predictor, LearnedStart]]
    size: float
    scale: float
    tests: int
    draws: int
    schedule: MetaSchedule


def trained_backbone(images: ImageSplits, seed: int) -> Any:
    """A network that tells the eight kinds of training letters apart, without its head."""
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
    return backbone.eval()


def linear_heads(images: ImageSplits, seed: int, tasks: int | None = None) -> Setting:
    """Linear heads on discriminant directions of the network's features, and 1.

    Args:
        tasks: training tasks of each row.
    """
    backbone = trained_backbone(images, seed)
    found = {split: embed(backbone, images[split].items.float() / 255) for split in ("train", "val", "test")}
    space = FeatureSpace(backbone.num_features, 2**NUM_ATTRIBUTES - 1).fit(found["train"], images.train.labels)
    parts = {}
    for split, part in found.items():
        mapped = space(part)
        items = torch.cat([4 * mapped, torch.ones_like(mapped[:, :1])], -1)
        parts[split] = LabelledItems(items, images[split].labels, images[split].class_names)
    num_features = parts["train"].items.shape[-1]
    schedule = MetaSchedule(tasks or 64000, batch=32, learning_rate=1e-2, seed=seed)
    return Setting(parts, lambda: head_of(num_features), size=1.0, scale=0.3, tests=500, draws=128, schedule=schedule)


def head_of(num_features: int) -> tuple[Predictor, LearnedStart]:
    """A linear head with a start of its own for each class."""
    return LinearPredictor(1.0, learned=False), LearnedStart(0.01 * torch.randn(WAY, num_features))


def whole_networks(images: ImageSplits, seed: int, tasks: int | None = None) -> Setting:
    """All weights of the network and of a new head; arguments as of :func:`linear_heads`."""
    backbone = trained_backbone(images, seed)

    def make() -> tuple[Predictor, LearnedStart]:
        network = nn.Sequential(backbone, nn.Linear(backbone.num_features, WAY))
        functional = FunctionalNetwork(with_norm(network, Norm.RUNNING))
        return NetworkPredictor(functional, WAY, images.image_shape), LearnedStart.from_network(functional)

    parts = {
        split: LabelledItems(images[split].items.flatten(1).float() / 255, images[split].labels, images[split].class_names)
        for split in ("train", "val", "test")
    }
    schedule = MetaSchedule(tasks or 1600, batch=8, learning_rate=1e-3, seed=seed)
    return Setting(parts, make, size=0.01, scale=0.03, tests=50, draws=32, schedule=schedule)


def build(row: str, setting: Setting, noise: float | None = None) -> RateDistortionModule:
    """Model, guide and objective of a row of the table.

    Args:
        noise: σ of the row :data:`LEARNED`.
    """
    predictor, start = setting.make()
    likelihood, gradient = CategoricalLikelihood(), ExactGradient(CategoricalLikelihood())
    if row == "maml":
        one = torch.ones(start.loc.shape[-1])
        prior = GaussianPrior(torch.zeros_like(one), one, learned=False)
        rule = GradientStep(STEPS, len(one), size=setting.size, learned=True, point=True)
        how: dict[str, Any] = {"on": Evidence.SUPPORT, "reduction": Reduction.MEAN, "family": Family.DELTA, "beta": 0.0}
        start.log_scale.requires_grad_(False)
        guide = UnrolledGuide(prior, predictor, start, gradient, rule, steps=STEPS, **how)
        return RateDistortionELBO(beta=0.0)(EmpiricalBayesModel(prior, predictor, likelihood), guide)
    name, _, number = row.partition("-")
    noise_only = name == "noise"
    how = {"steps": STEPS, "size": setting.size, "learned": True, "prior_size": setting.size, "noise_only": noise_only}
    how["scale"] = (noise if row == LEARNED else float(number)) if noise_only else setting.scale
    model, informed = build_platipus(predictor, start, gradient, likelihood, **how)
    return RateDistortionELBO(beta=0.0 if noise_only else WAY * QUERIES * float(number))(model, informed)


def train(objective: RateDistortionModule, tasks: OnePairSampler, schedule: MetaSchedule) -> None:
    """Adam, with a cosine decay, in place."""
    quick = {id(p) for name, p in objective.named_parameters() if name.rpartition(".")[2].startswith("log_")}
    learned = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if (id(p) in quick) is yes], "lr": rate * schedule.learning_rate}
        for yes, rate in ((False, 1.0), (True, schedule.scale_speed))
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    descend(lambda episode: objective(*episode), tasks.sample, optimizer, schedule)


def learned_noise(model: Any) -> float | None:
    """Root mean square over weights of the standard deviation of a ``model``'s prior, where it has seen the support."""
    return float(model.prior.scale.detach().square().mean().sqrt()) if isinstance(model, AdaptedModel) else None


def independent(draws: Tensor) -> Tensor:
    """Of draws that come in pairs on both sides of their mean, one of each pair."""
    return draws[::2]


@torch.no_grad()
def measure(objective: RateDistortionModule, setting: Setting) -> dict[str, tuple[float, float]]:
    """Of ambiguous test tasks :class:`~inference.diagnostics.ambiguity.Ambiguity` with all draws, the coverage of a few and of
    many of them, what the many reach, and of tasks whose support tells the pair the accuracy."""
    how: dict[str, Any] = {"shot": SHOT, "queries": QUERIES, "contested": True}
    parts: dict[str, list[Tensor]] = {}
    drawn: dict[str, Any] = {"seed": mix_seed(setting.schedule.seed, 1), "num_samples": setting.draws}
    for yes in (True, False):
        sampler = AttributeSampler(setting.parts["test"], ambiguous=yes, **how)
        for episode, predicted in predictions(objective.model, objective.guide, sampler, tasks=setting.tests, **drawn):
            logits, labels = predicted.labels.logits, episode.query_y
            if yes:
                found, alone = ambiguity(logits, labels), independent(logits)
                given = ambiguity(alone, labels).given
                values = {name: getattr(found, name) for name in ("accuracy", "nll", "marginal_nll")}
                values |= {name: expected_coverage(given, min(n, len(alone))) for name, n in (("few", FEW), ("many", MANY))}
                values["reached"] = ambiguity(alone[:MANY], labels).reached
            else:
                values = {"plain": (predicted.probabilities().argmax(-1) == labels).float().mean(-1)}
            for name, value in values.items():
                parts.setdefault(name, []).append(value)
    return {name: (float(torch.cat(part).mean()), confidence_interval(torch.cat(part))) for name, part in parts.items()}


def run_row(name: str, setting: Setting, tasks: OnePairSampler, done: Mapping[str, Row]) -> Row:
    """Train a row on ``tasks`` and test it.

    Args:
        name, setting: of what.
        done: rows of the same seed, by name.

    Raises:
        SystemExit: the row takes its σ from one that there is not.
    """
    if name == LEARNED and KAPPA not in done:
        raise SystemExit(f"{LEARNED} takes its σ from {KAPPA}: add it to --rows")
    with seeded(setting.schedule.seed):
        objective = build(name, setting, done[KAPPA].noise if name == LEARNED else None)
    begun = time.process_time()
    train(objective, tasks, setting.schedule)
    seconds = time.process_time() - begun
    return Row(name, setting.schedule.seed, measure(objective, setting), learned_noise(objective.model), seconds)


def kept_rows(path: Path) -> list[Row]:
    """Rows that earlier calls have written."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def main() -> None:
    """Run the rows, print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of rows and picture")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--whole", action="store_true", help="adapt all weights of the network")
    parser.add_argument("--tasks", type=int, help="training tasks of each row")
    given = parser.parse_args()
    path = given.out / ("whole.json" if given.whole else "rows.json")
    names = sorted(given.rows or (WHOLE_ROWS if given.whole else ROWS), key=ROWS.index)
    rows = kept_rows(path)
    for seed in given.seeds:
        done = {row.name: row for row in rows if row.seed == seed}
        if missing := [name for name in names if name not in done]:
            images = load_attributed_glyphs(seed=seed)
            setting = (whole_networks if given.whole else linear_heads)(images, seed, given.tasks)
            tasks = OnePairSampler(setting.parts["train"], shot=SHOT, queries=QUERIES)
        for name in missing:
            done[name] = run_row(name, setting, tasks, done)
            rows.append(done[name])
            write_json(path, [asdict(row) for row in rows])
            print(f"{name}, seed {seed}: {done[name].seconds:.0f} s", flush=True)
        print(format_table([done[name] for name in names], COLUMNS), flush=True)
    print(seed_by_seed(rows))
    if not given.whole:
        about = "letters with three attributes, linear heads; numbers: σ and κ; below and to the right is better"
        save_figure(frontier(rows, about), given.out / "frontier.png")


if __name__ == "__main__":
    main()
