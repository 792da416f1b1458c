"""SIB beside the original authors' code: the training step, evaluation, and what comes before it."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.original_sib import STEP_SIZE, STEPS, classifier_of, one_by_one
from benchmarks.speed.timing import IN_A_ROW, Row, interleave
from data.episodes import EpisodeSampler, TaskSpec
from data.items import LabelledItems
from data.seeding import mix_seed
from inference.elbo import RateDistortionModule
from inference.evaluation.evaluate import evaluate_readings, readings
from inference.evaluation.predictive import place_of
from inference.meta.learner import build_objective
from inference.meta.mapping import feature_space, map_items
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, settings
from inference.meta.training import every_step, objective_weights
from inference.runs.compiling import JointProgram
from inference.runs.graphs import CapturedTerms
from inference.runs.tensors import load_features, near
from inference.runs.training import spare_steps
from models.networks.backbones import build_backbone
from models.networks.layers import embed

BATCHES = (1, 8, 16, 64, 256)
LARGE = (256, 64)  # where the original makes most tasks per second
ITS_SETTING = {"predictor": "cosine", "posterior": "delta", "gradient": "mlp"}
DEFAULT = {"predictor": "distance", "posterior": "gaussian", "gradient": "equivariant"}
EARLIER = 0.5  # the weight of earlier steps in the loss of a default run


def bank_of(features: str | None, *, classes: int = 64, images: int = 100, width: int = 256) -> LabelledItems:
    """Backbone features: training features of a file, or where there is none Gaussian blobs of the same size."""
    if features:
        return load_features(features)["train"]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(images)
    centres, noise = (torch.randn(n, width, generator=generator) for n in (classes, classes * images))
    items = (2 * centres[labels] + noise).relu()  # no feature after a ReLU is negative
    return LabelledItems(items, labels, tuple(f"class {i}" for i in range(classes)))


def ours(
    bank: LabelledItems, steps: int = STEPS, *, device: str = "cpu", **chosen: str
) -> tuple[RateDistortionModule, LabelledItems]:
    """Model, guide and objective in one setting, ``chosen`` among the options of a run, on a ``device``, and the features they
    take."""
    options = SibOptions(beta=0.1, steps=steps, **chosen)  # type: ignore[arg-type]
    guide, variant = settings(GuideSettings, options), options.variants()[0]
    space, means = feature_space(guide, variant.predictor, bank)
    return build_objective(guide, variant, means).to(device), near(map_items(space, bank), torch.device(device))


def training_step(
    objective: RateDistortionModule,
    sampler: EpisodeSampler,
    batch: int,
    earlier: float = 0.0,
    compiled: bool = False,
    graphs: bool = True,
) -> Callable:
    """A step on ``batch`` tasks: sampling, forward, backward, Adam; with a loss after every step of the guide where ``earlier``
    is its weight, ``compiled`` as a run with ``compile`` does it, and on a GPU, as in training, with ``graphs``."""
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 1e-3, fused=True)
    whole, number = every_step(objective, objective_weights(objective, earlier)), iter(range(10**9))
    (device, _), captured = place_of(objective), CapturedTerms(compiles=compiled)
    captured.worth = captured.worth_compiling = 1  # in the rounds that are not counted

    def step() -> None:
        episode = sampler.sample(batch, seed=mix_seed(0, next(number))).to(device)
        loss = (captured(whole, *episode).loss if graphs else whole(*episode)) / batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class OriginalLoss(nn.Module):
    """The loss of the original's ``classifier`` on tasks, as a tuple of one number."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> tuple[Tensor]:
        scores = self.classifier(support_x, support_y, query_x, STEP_SIZE)
        return (nn.functional.cross_entropy(scores.flatten(0, 1), query_y.flatten()),)


def original_step(classifier: nn.Module, sampler: EpisodeSampler, batch: int, compiled: bool = False) -> Callable:
    """The same of the original: its batch norm sees all tasks of a batch together. ``compiled`` as ours is."""
    optimizer, number = torch.optim.Adam(classifier.parameters(), 1e-3, fused=compiled), iter(range(10**9))
    device, _ = place_of(classifier)
    loss_of: Callable = OriginalLoss(classifier)
    if compiled:
        program = JointProgram(loss_of, sampler.sample(batch, seed=0)[:4], 1)
        program.prove(sampler.sample(batch, seed=1)[:4], [1.0])
        loss_of = lambda *tasks: program(tasks, [1.0])  # noqa: E731

    def step() -> None:
        episode = sampler.sample(batch, seed=mix_seed(0, next(number))).to(device)
        (loss,) = loss_of(*episode[:4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def steps(options: argparse.Namespace) -> list[Row]:
    """``sib-step``: a training step at equal batch, 5-way 1-shot, K = 3, 75 queries."""
    spare_steps()  # for all of them
    bank, rows = bank_of(options.features), []
    there = near(bank, torch.device(options.device))
    for batch in options.batch or BATCHES:
        programs: dict[str, Callable] = {}
        if options.compile:
            torch.compiler.reset()  # of what was compiled for another batch
        if options.original:
            classifier = classifier_of(options.original)(TaskSpec().way, bank.items.shape[-1], STEPS).to(options.device)
            programs["original, Adam"] = original_step(classifier, EpisodeSampler(there, TaskSpec()), batch)
            if options.compile:
                twin, name = copy.deepcopy(classifier), "original, compiled as ours and with Adam in one call"
                programs[name] = original_step(twin, EpisodeSampler(there, TaskSpec()), batch, compiled=True)
        settings_of = (("ours, its setting", ITS_SETTING, 0.0), ("ours, default", DEFAULT, 0.0))
        for name, chosen, earlier in (*settings_of, ("ours, default, loss at every step", DEFAULT, EARLIER)):
            objective, items = ours(bank, device=options.device, **chosen)
            for compiled in (False, True) if options.compile else (False,):
                sampler, called = EpisodeSampler(items, TaskSpec()), f"{name}, compiled" if compiled else name
                programs[called] = training_step(copy.deepcopy(objective), sampler, batch, earlier, compiled)
            if options.device != "cpu":
                programs[f"{name}, kernel by kernel"] = training_step(
                    copy.deepcopy(objective), sampler, batch, earlier, graphs=False
                )
        group = f"{batch} tasks a step"
        rounds = max(5, options.rounds if batch < 64 else options.rounds // 4)
        in_a_row = max(IN_A_ROW, min(100, 512 // batch))  # half a second, for caches take some steps to be as in training
        rows += interleave("sib-step", group, programs, rounds=rounds, work=batch, in_a_row=in_a_row, clock=options.clock)
    return rows + (at_their_batches(options, bank, there) if options.original and not options.batch else [])


def at_their_batches(options: argparse.Namespace, bank: LabelledItems, there: LabelledItems) -> list[Row]:
    """As many tasks by each at a batch of its own, a second or two in a row: the original at those at which it makes most tasks
    per second, the default setting at the default one."""
    ours_at, tasks, programs = SibOptions().batch, 16 * LARGE[0], dict[str, Callable]()
    if options.compile:
        torch.compiler.reset()
    for batch in LARGE:
        classifier = classifier_of(options.original)(TaskSpec().way, bank.items.shape[-1], STEPS).to(options.device)
        step = original_step(classifier, EpisodeSampler(there, TaskSpec()), batch)
        programs[f"original, {batch} a step"] = again(step, tasks // batch)
    objective, items = ours(bank, device=options.device, **DEFAULT)
    for compiled in (False, True) if options.compile else (False,):
        step = training_step(copy.deepcopy(objective), EpisodeSampler(items, TaskSpec()), ours_at, compiled=compiled)
        name = f"ours, default, {ours_at} a step{', compiled' if compiled else ''}"
        programs[name] = again(step, tasks // ours_at)
    group, rounds = f"{tasks} tasks, each at its batch", max(5, options.rounds)
    return interleave("sib-step", group, programs, rounds=rounds, work=tasks, clock=options.clock)


def again(step: Callable, times: int) -> Callable:
    """A ``step``, so many ``times``."""

    def steps_in_a_row() -> None:
        for _ in range(times):
            step()

    return steps_in_a_row


def evaluation(options: argparse.Namespace) -> list[Row]:
    """``evaluation``: accuracy and all scores at K = 0 … 3 on 50 tasks, and at K = 3 alone, where the original, one task at a
    time, is asked for accuracy."""
    spare_steps()  # for all of them, as commands do
    bank, tasks, programs = bank_of(options.features), 50, {}
    sampler = EpisodeSampler(bank, TaskSpec())
    if options.original:
        classifier = classifier_of(options.original)(TaskSpec().way, bank.items.shape[-1], STEPS).to(options.device)
        programs["original, one task at a time"] = lambda: one_by_one(
            classifier, sampler.sample(tasks, seed=1).to(options.device)
        )
    for name, chosen in (
        ("ours, cosine, delta, mlp", ITS_SETTING),
        ("ours, distance, Gaussian, 32 draws", DEFAULT),
        ("ours, cosine, Gaussian, 32 draws", DEFAULT | {"predictor": "cosine"}),
    ):
        objective, items = ours(bank, device=options.device, **chosen)
        ours_of = EpisodeSampler(items, TaskSpec())
        programs[name] = evaluate_all(objective, ours_of, tasks)
        programs[f"{name}, K = {STEPS} alone"] = evaluate_all(objective, ours_of, tasks, (STEPS,))
    rows = interleave("evaluation", "50 tasks", programs, rounds=options.rounds, work=tasks, clock=options.clock)
    return rows + extraction(options)


def evaluate_all(
    objective: RateDistortionModule, sampler: EpisodeSampler, tasks: int, steps: Sequence[int] | None = None
) -> Callable:
    """Scores after every number of steps, or after these numbers of ``steps`` alone."""
    every = readings(objective.guide)
    guides = every if steps is None else {k: every[k] for k in steps}
    return lambda: evaluate_readings(objective.model, guides, sampler, tasks=tasks, seed=1)


def extraction(options: argparse.Namespace) -> list[Row]:
    """Features of the images of 100 tasks out of 8 classes of 75: task by task, and of the split once."""
    generator, network = torch.Generator().manual_seed(0), build_backbone("conv4-64", (3, 32, 32)).eval()
    images = torch.randint(256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = LabelledItems(images, torch.arange(8).repeat_interleave(75), tuple("abcdefgh"))
    floats = nn.Sequential(Floats(), network).to(options.device)

    @torch.no_grad()
    def task_by_task() -> None:
        for number in range(100):
            task = EpisodeSampler(split, TaskSpec()).sample(1, seed=number)
            floats(torch.cat([task.support_x[0], task.query_x[0]]).to(options.device))

    programs = {"task by task": task_by_task, "the split once": lambda: embed(floats, split.items)}
    return interleave("evaluation", "features of 100 tasks", programs, rounds=5, work=100, clock=options.clock)


class Floats(nn.Module):
    """uint8 images as floats in [0, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255
