"""From data to fitted algorithms, records of ``metrics.json``, and the table a β-BNN run ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchmetrics.functional.classification import binary_auroc

from data.errors import UserError
from data.images import LabelledItems
from data.supervised import SupervisedData, load_letters
from inference.bnn.bnn import BNN, choose_likelihood, fit_posterior
from inference.bnn.options import Algorithm, BnnOptions
from inference.files import RunFolder
from inference.information.weights import generalisation_bound, sharpness, weight_information
from inference.options import split_commas
from inference.report import align
from inference.seeding import seeded
from models.backbones import Standardize
from models.likelihoods import CategoricalLikelihood
from models.networks import build_network

Record = dict[str, Any]
SCORED_AT_MOST = 10_000  # training items that distortion and training accuracy are estimated from
WATCHED_AT_MOST = 2_000


def fit_run(options: BnnOptions, data: SupervisedData, run: RunFolder) -> tuple[dict[Algorithm, BNN], list[Record]]:
    """Fit every algorithm: choose its β on validation data where there are several, then train on all at that β.

    Returns:
        algorithm -> fitted on all training data, and the records of the sweep.
    """
    network = make_network(options, data)
    train = choose_items(data.train, options.train_size, options.seed)
    fitted, sweep = {}, []
    for algorithm in map(Algorithm, split_commas(options.algorithms)):
        betas = algorithm.betas(options.betas)
        best = betas[0]
        if len(betas) > 1:
            records = [validate(network, train, options, algorithm, beta, run) for beta in betas]
            best = min(zip(records, betas, strict=True), key=lambda pair: pair[0]["nll"])[1]
            sweep += records
        watch = choose_items(data.test, min(WATCHED_AT_MOST, len(data.test)), options.seed)
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


def choose_items(items: LabelledItems, count: int | None, seed: int) -> LabelledItems:
    """A seeded choice of ``count`` items; all of them where it is ``None``.

    Raises:
        UserError: more than there are.
    """
    if count is None:
        return items
    if count > len(items):
        raise UserError(f"{count} items asked for, but there are {len(items)}")
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:count]
    return LabelledItems(items.items[order], items.labels[order], items.class_names)


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


def make_record(bnn: BNN, train: LabelledItems, test: LabelledItems, options: BnnOptions, *, split: str) -> Record:
    """A flat record.

    ``rate`` is the mean of KL(q_k ‖ m) against the m each posterior was trained with; ``distortion`` −E_q Σ log p over the
    training data; ``information`` an upper bound on I(w; S) for a fixed prior (the rate), and for a mixture the Monte Carlo
    estimate over its bootstrap samples, at most log K; ``bound`` on the expected gap between training and test error that
    follows from it, which is a guarantee for fixed priors alone.
    """
    posterior = bnn.posterior
    part = choose_items(train, min(len(train), SCORED_AT_MOST), options.seed)
    scores = posterior.scores(test, num_samples=options.samples)
    on_train = posterior.scores(part, num_samples=max(options.samples // 4, len(posterior.loc)))
    record: Record = {"split": split, "algorithm": bnn.algorithm.value, "beta": bnn.beta, "items": len(train)}
    record |= {name: scores.get(name) for name in ("accuracy", "nll", "ece", "brier", "rmse")}
    record |= {"rate": None, "distortion": on_train["distortion"] * len(train) / len(part)}
    record |= {"train_accuracy": on_train.get("accuracy"), "train_nll": on_train["nll"], "gap": None}
    record |= {"information": None, "bound": None, "sharpness": None}
    if "accuracy" in scores:
        record["gap"] = on_train["accuracy"] - scores["accuracy"]
    if posterior.log_scale is not None:
        rate = float(bnn.rates.mean())
        mixture = bnn.algorithm.is_mixture
        information = weight_information(posterior.loc, posterior.log_scale) if mixture else rate
        record |= {"rate": rate, "information": information}
        if "accuracy" in scores:  # the error rate lies in [0, 1]; a squared error has no such bound
            record["bound"] = generalisation_bound(information, len(train))
        record["sharpness"] = posterior_sharpness(bnn, part)
    return record


def posterior_sharpness(bnn: BNN, items: LabelledItems) -> float:
    """Rise of the loss around the first posterior's mean, nats an item, on at most 1000 items."""
    posterior = bnn.posterior
    assert posterior.log_scale is not None
    x, y = (t[:1000].to(posterior.loc.device) for t in (items.items, items.labels))

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return -posterior.model.likelihood(posterior.model.map_weights(x, weights)).log_prob(y).mean(-1)

    with seeded(0, device=posterior.loc.device):
        return sharpness(loss, posterior.loc[0], posterior.log_scale[0])


def final_records(
    options: BnnOptions, fitted: Mapping[Algorithm, BNN], data: SupervisedData, outside: LabelledItems | None
) -> list[Record]:
    """One record an algorithm on the test data, with ``auroc`` of the predictive entropy against ``outside`` items."""
    train = choose_items(data.train, options.train_size, options.seed)
    records = []
    for bnn in fitted.values():
        record = make_record(bnn, train, data.test, options, split="test")
        if outside is not None:
            record["auroc"] = out_of_distribution(bnn, data.test, outside, options.samples)
        records.append(record)
    return records


def out_of_distribution(bnn: BNN, inside: LabelledItems, outside: LabelledItems, num_samples: int) -> float:
    """AUROC of the predictive entropy as a sign that an item is not of the training distribution."""
    entropies = [bnn.posterior.entropy(part.items, num_samples=num_samples).cpu() for part in (inside, outside)]
    target = torch.cat([torch.full_like(e, i, dtype=torch.long) for i, e in enumerate(entropies)])
    return float(binary_auroc(torch.cat(entropies).exp(), target))  # exp: the metric takes a logit above 1 as it is


def outside_items(data: SupervisedData) -> LabelledItems | None:
    """Rendered letters where the training data are grayscale images of another kind; ``None`` where they would not fit."""
    shape = data.item_shape
    if len(shape) != 3 or shape[0] != 1 or shape[1] != shape[2] or shape[1] < 16:
        return None
    return load_letters(shape[1])


def format_table(records: Iterable[Record]) -> str:
    """The closing table as text."""
    header = ("algorithm", "β", "accuracy %", "NLL", "ECE %", "rate", "distortion", "gap %", "I(w; S)", "bound %", "AUROC")
    rows = [header]
    for record in records:
        show = lambda name, text, factor=1.0: "-" if record.get(name) is None else text.format(factor * record[name])  # noqa: E731, B023
        accuracy = show("accuracy", "{:.2f}", 100.0)
        rows.append(
            (
                record["algorithm"],
                f"{record['beta']:g}",
                accuracy if record["accuracy"] is not None else f"rmse {record['rmse']:.3f}",
                show("nll", "{:.4f}"),
                show("ece", "{:.2f}", 100.0),
                show("rate", "{:.1f}"),
                show("distortion", "{:.1f}"),
                show("gap", "{:.2f}", 100.0),
                show("information", "{:.2f}"),
                show("bound", "{:.1f}", 100.0),
                show("auroc", "{:.4f}"),
            )
        )
    return align(rows)
