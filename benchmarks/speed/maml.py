"""MAML beside learn2learn's: a training step through the same network, with equal tasks, steps and norm."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.speed.timing import Row, interleave
from data.episodes import Episode
from data.errors import UserError
from guides.tasks.gradient_networks import ExactGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import LearnedStart
from guides.tasks.unrolled import UnrolledGuide
from inference.elbo import RateDistortionELBO
from inference.runs.training import spare_steps
from models.likelihoods import CategoricalLikelihood
from models.networks.classifiers import build_network
from models.networks.functional import FunctionalNetwork
from models.networks.norms import with_norm
from models.tasks.model import EmpiricalBayesModel
from models.tasks.network_predictor import NetworkPredictor
from models.tasks.priors import GaussianPrior

WAY, SHOT, QUERIES = 5, 1, 15
IMAGE = 1, 28, 28
WIDTHS, BATCHES = (32, 64), (4, 16)
STEP_SIZE, OUTER = 0.4, 1e-3


def images(tasks: int, device: str) -> Episode:
    """Noise of the size of Omniglot's images: 5-way 1-shot with 15 queries a class."""
    generator, y = torch.Generator().manual_seed(0), torch.arange(WAY)
    x = torch.randn(tasks, WAY * (SHOT + QUERIES), *IMAGE, generator=generator)
    support_y, query_y = (y.repeat(n).expand(tasks, -1) for n in (SHOT, QUERIES))
    return Episode(x[:, : WAY * SHOT], support_y, x[:, WAY * SHOT :], query_y, WAY).to(device)


def network_of(width: int, device: str) -> nn.Module:
    """Conv-4 of so many channels with a linear layer, normed by the items at hand as in learn2learn's scripts."""
    torch.manual_seed(0)
    return with_norm(build_network(f"conv4-{width}", IMAGE, WAY), "task").to(device)


def ours(network: nn.Module, tasks: Episode, steps: int, *, first_order: bool) -> Callable[[], float]:
    """A step on all ``tasks`` at once; it returns the mean loss."""
    functional, likelihood = FunctionalNetwork(network), CategoricalLikelihood()
    predictor, start = NetworkPredictor(functional, WAY), LearnedStart.from_network(functional)
    prior = GaussianPrior(start.loc.detach()[0], torch.ones_like(start.loc[0]), learned=False)
    rule = GradientStep(steps, functional.num_weights, size=STEP_SIZE, point=True)
    chosen: dict[str, Any] = {"steps": steps, "on": "support", "reduction": "mean", "beta": 0.0, "family": "delta"}
    guide = UnrolledGuide(prior, predictor, start, ExactGradient(likelihood), rule, first_order=first_order, **chosen)
    objective = RateDistortionELBO(beta=0.0)(EmpiricalBayesModel(prior, predictor, likelihood), guide).to(tasks.query_x.device)
    optimizer = torch.optim.Adam([start.loc], OUTER)

    def step() -> float:
        optimizer.zero_grad()
        loss = objective(*tasks) / tasks.query_y.numel()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def maml_of(checkout: str) -> Any:
    """learn2learn's class ``MAML``. Its package asks for games and languages as it is imported; this module needs none.

    Args:
        checkout: a folder.

    Raises:
        UserError: there is none.
    """
    for name in ("learn2learn", "learn2learn.algorithms"):
        package = ModuleType(name)
        package.__path__ = [str(Path(checkout, *name.split(".")))]
        sys.modules[name] = package
    try:
        return import_module("learn2learn.algorithms.maml").MAML
    except ImportError as error:
        raise UserError(f"`learn2learn={checkout}` is no checkout of learn2learn: {error}") from error


def theirs(kind: Any, network: nn.Module, tasks: Episode, steps: int, *, first_order: bool) -> Callable[[], float]:
    """The same by learn2learn's MAML (``kind``), one task after another, as in its examples."""
    maml = kind(copy.deepcopy(network), lr=STEP_SIZE, first_order=first_order)
    optimizer = torch.optim.Adam(maml.parameters(), OUTER)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for support_x, support_y, query_x, query_y in zip(*tasks[:4], strict=True):
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(support_x), support_y))
            loss = F.cross_entropy(learner(query_x), query_y)
            loss.backward()
            total += loss.item()
        for parameter in maml.parameters():
            parameter.grad.div_(len(tasks.query_y))
        optimizer.step()
        return total / len(tasks.query_y)

    return step


def steps(options: argparse.Namespace) -> list[Row]:
    """``maml-step``: a training step, 5-way 1-shot with 15 queries a class; each row has the first loss, which is equal."""
    spare_steps()
    rows, kind = list[Row](), maml_of(options.learn2learn) if options.learn2learn else None
    for width in WIDTHS:
        for number, first_order in ((1, False), (5, False), (5, True)):
            for batch in options.batch or BATCHES:
                network, tasks = network_of(width, options.device), images(batch, options.device)
                programs: dict[str, Callable[[], float]] = {}
                if kind is not None:
                    programs["learn2learn"] = theirs(kind, network, tasks, number, first_order=first_order)
                programs["ours"] = ours(network, tasks, number, first_order=first_order)
                extra = {name: {"loss": program()} for name, program in programs.items()}
                order = "first" if first_order else "second"
                group = f"conv4-{width}, K = {number}, {order} order, {batch} tasks a step"
                rounds = max(5, options.rounds // 4)
                rows += interleave("maml-step", group, programs, rounds=rounds, work=batch, clock=options.clock, extra=extra)
    return rows
