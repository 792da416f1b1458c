"""Fitting of all algorithms of a β-BNN run: validate each β, then train on all data with the best."""

from __future__ import annotations

import torch

from data.errors import UserError
from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from inference.bnn.bnn import BNN, choose_likelihood, fit_posterior
from inference.bnn.options import Algorithm, BnnOptions
from inference.bnn.report import Record, make_record
from inference.runs.folder import RunFolder
from inference.runs.options import split_commas
from models.likelihoods import CategoricalLikelihood
from models.networks.backbones import Standardize
from models.networks.classifiers import build_network

WATCHED_AT_MOST = 2_000


def fit_run(options: BnnOptions, data: SupervisedData, run: RunFolder) -> tuple[dict[Algorithm, BNN], list[Record]]:
    """Fit every algorithm: choose its β on validation data where there are several, then train on all at that β.

    Returns:
        algorithm -> fitted on all training data, and the records of the sweep.
    """
    network = make_network(options, data)
    train = data.train.choose(options.train_size, options.seed)
    fitted, sweep = {}, []
    for algorithm in map(Algorithm, split_commas(options.algorithms)):
        betas = algorithm.betas(options.betas)
        best = betas[0]
        if len(betas) > 1:
            records = [validate(network, train, options, algorithm, beta, run) for beta in betas]
            best = min(zip(records, betas, strict=True), key=lambda pair: pair[0]["nll"])[1]
            sweep += records
        watch = data.test.choose(min(WATCHED_AT_MOST, len(data.test)), options.seed)
        print(f"{algorithm}: β = {best:g} on {len(train)} items")
        fitted[algorithm] = fit_posterior(network, train, options, algorithm, best, run, watch=watch)
    return fitted, sweep


def make_network(options: BnnOptions, data: SupervisedData) -> torch.nn.Sequential:
    """The untrained network of the options, standardising images by the training data.

    Raises:
        UserError: an unknown network, or one that cannot take the items.
    """
    likelihood = choose_likelihood(options.likelihood, data.train.labels)
    outputs = data.train.num_classes if isinstance(likelihood, CategoricalLikelihood) else 1
    try:
        with seeded(options.seed):
            network = build_network(options.network, data.item_shape, outputs, hidden=options.widths)
    except ValueError as error:
        raise UserError(str(error)) from None
    if isinstance(network[0], Standardize):
        network[0].fit(data.train.items)
    return network


def validate(
    network: torch.nn.Module, train: LabelledItems, options: BnnOptions, algorithm: Algorithm, beta: float, run: RunFolder
) -> Record:
    """Train on part of the training data and score the rest: the record of one β of the sweep."""
    held = max(1, round(options.validation * len(train)))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(options.seed + 1))
    parts = [LabelledItems(train.items[i], train.labels[i], train.class_names) for i in (order[held:], order[:held])]
    if options.bootstrap_size is not None and options.bootstrap_size > len(parts[0]):
        raise UserError(
            f"--bootstrap_size {options.bootstrap_size} exceeds the {len(parts[0])} items that are left beside validation"
        )
    print(f"{algorithm}: validating β = {beta:g}")
    bnn = fit_posterior(network, parts[0], options, algorithm, beta, run, stage=f"validate-{algorithm}-beta{beta:g}")
    return make_record(bnn, parts[0], parts[1], options, split="val")
