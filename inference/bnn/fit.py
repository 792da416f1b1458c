"""Fitting of all algorithms of a β-BNN run: validate each β, then train on all data with the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.checks import choose_likelihood
from inference.bnn.fitting import Fit, Recipe, fit_posterior, stage_name
from inference.bnn.options import BnnOptions
from inference.bnn.report import BnnRecord, make_record
from inference.runs.folder import RunFolder
from inference.runs.training import Loop
from models.bayesian.weight_priors import WeightPrior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import CategoricalLikelihood, Likelihood
from models.networks.backbones import Standardize
from models.networks.classifiers import build_network, pretrained_network
from models.networks.frozen import freeze, freeze_batch_norm, keep_start

WATCHED_AT_MOST = 2_000


@dataclass(frozen=True)
class Selection:
    """How β is chosen among several.

    Args:
        validation: fraction of the training data that is held out for it.
        samples: draws of the posterior predictive that is scored.
    """

    validation: float
    samples: int


@dataclass(frozen=True)
class Problem:
    """What every algorithm of a run is fitted to.

    Args:
        network: untrained.
        train: all training items.
        likelihood: p(y given ŷ).
        priors: algorithm -> its prior and the prior's scales.
    """

    network: nn.Module
    train: LabelledItems
    likelihood: Likelihood
    priors: Mapping[Algorithm, tuple[WeightPrior | None, PriorScales]]

    def recipe(self, algorithm: Algorithm, beta: float, settings: FitSettings) -> Recipe:
        """How one algorithm is fitted at one β."""
        return Recipe(algorithm, beta, self.likelihood, *self.priors[algorithm], settings)


def fit_run(options: BnnOptions, data: SupervisedData, run: RunFolder) -> tuple[dict[Algorithm, Fit], list[BnnRecord]]:
    """Fit every algorithm: choose its β on validation data where there are several, then train on all at that β.

    Returns:
        algorithm -> fitted on all training data, and the records of the sweep.
    """
    problem = make_problem(options, data)
    watch = data.test.choose(min(WATCHED_AT_MOST, len(data.test)), options.seed)
    selection = Selection(options.validation, options.samples)
    fitted, sweep = {}, []
    for algorithm in options.algorithms:
        betas = algorithm.betas(options.betas)
        best = betas[0]
        if len(betas) > 1:
            recipes = [problem.recipe(algorithm, beta, options.fit) for beta in betas]
            records = [validate(problem, recipe, selection, loop=options.loop, run=run) for recipe in recipes]
            best = choose_beta(records)
            sweep += records
        print(f"{algorithm}: β = {best:g} on {len(problem.train)} items")
        recipe = problem.recipe(algorithm, best, options.fit)
        fitted[algorithm] = fit_posterior(problem.network, problem.train, recipe, loop=options.loop, run=run, watch=watch)
    return fitted, sweep


def make_problem(options: BnnOptions, data: SupervisedData) -> Problem:
    """Training items, untrained network, likelihood and priors of the options."""
    train = data.train.choose(options.train_size, options.seed)
    likelihood = choose_likelihood(options.likelihood, train.labels, options.noise)
    if options.network_weights is None:
        network = make_network(options.network, data, likelihood, widths=options.widths, seed=options.seed)
    else:
        frozen = tuple(options.weights) == ("last",)
        network = given_network(options.network, options.network_weights, data, likelihood, frozen=frozen, seed=options.seed)
    return Problem(network, train, likelihood, {algorithm: options.prior_of(algorithm) for algorithm in options.algorithms})


def choose_beta(records: Sequence[BnnRecord]) -> float:
    """The β whose fit has the best NLL on validation data."""
    return min(records, key=lambda record: record["nll"])["beta"]


def make_network(name: str, data: SupervisedData, likelihood: Likelihood, *, widths: Sequence[int], seed: int) -> nn.Sequential:
    """An untrained network by name (of an MLP with hidden layers of these ``widths``), standardising images by the training
    data.

    Raises:
        UserError: an unknown network, or one that cannot take the items.
    """
    outputs = data.train.num_classes if isinstance(likelihood, CategoricalLikelihood) else 1
    try:
        with seeded(seed):
            network = build_network(name, data.item_shape, outputs, hidden=tuple(widths))
    except ValueError as error:
        raise UserError(str(error)) from None
    if isinstance(network[0], Standardize):
        network[0].fit(data.train.items)
    return network


def given_network(
    name: str, weights: str, data: SupervisedData, likelihood: Likelihood, *, frozen: bool, seed: int
) -> nn.Sequential:
    """A network with given weights and, where theirs has other outputs than ``likelihood`` needs, a new last layer.

    Batch norm keeps the statistics that it has: those of several posteriors could not be one network's.

    Args:
        name, weights: see :func:`~models.networks.classifiers.pretrained_network`.
        data: what the network is for.
        likelihood: p(y given ŷ), which says the number of outputs.
        frozen: whether all but the last layer are constants.
        seed: of a new last layer.

    Raises:
        UserError: see there.
    """
    outputs = data.train.num_classes if isinstance(likelihood, CategoricalLikelihood) else 1
    with seeded(seed):
        *start, head = pretrained_network(name, weights, data.item_shape, outputs)
    body = freeze_batch_norm(nn.Sequential(*start))
    return nn.Sequential(*(freeze(body) if frozen else keep_start(body)), head)


def validate(problem: Problem, recipe: Recipe, selection: Selection, *, loop: Loop, run: RunFolder) -> BnnRecord:
    """Train on part of the training data and score the rest: the record of one β of the sweep."""
    seed, stage = recipe.settings.seed, f"validate-{stage_name(recipe.algorithm, recipe.beta)}"
    kept, held = split_validation(problem.train, selection.validation, seed)
    print(f"{recipe.algorithm}: validating β = {recipe.beta:g}")
    bnn = fit_posterior(problem.network, kept, recipe, loop=loop, run=run, stage=stage)
    return make_record(bnn, kept, held, split="val", samples=selection.samples, seed=seed)


def split_validation(train: LabelledItems, fraction: float, seed: int) -> tuple[LabelledItems, LabelledItems]:
    """A seeded split into items to train on and a ``fraction`` to choose β by.

    Raises:
        UserError: none is left to train on.
    """
    held = max(1, round(fraction * len(train)))
    if held >= len(train):
        raise UserError(f"`validation={fraction:g}` takes all of {len(train)} training items: leave some, or give one `beta`")
    order: Tensor = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + 1))
    kept, rest = (LabelledItems(train.items[i], train.labels[i], train.class_names) for i in (order[held:], order[:held]))
    return kept, rest
