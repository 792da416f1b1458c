"""From fitted algorithms to records of ``metrics.json`` and the table a β-BNN run ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchmetrics.functional.classification import binary_auroc

from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from data.sources.glyphs import load_unseen_letters
from inference.bnn.bnn import BNN
from inference.bnn.options import Algorithm, BnnOptions
from inference.diagnostics.weight_information import generalisation_bound, sharpness, weight_information
from inference.evaluation.tables import align

Record = dict[str, Any]
SCORED_AT_MOST = 10_000  # training items that distortion and training accuracy are estimated from


def make_record(bnn: BNN, train: LabelledItems, test: LabelledItems, options: BnnOptions, *, split: str) -> Record:
    """A flat record.

    ``rate`` is the mean of KL(q_k ‖ m) against the m each posterior was trained with; ``distortion`` −E_q Σ log p over the
    training data; ``information`` an upper bound on I(w; S) for a fixed prior (the rate), and for a mixture the Monte Carlo
    estimate over its bootstrap samples, at most log K; ``bound`` on the expected gap between training and test error that
    follows from it, which is a guarantee for fixed priors alone.
    """
    posterior = bnn.posterior
    part = train.choose(min(len(train), SCORED_AT_MOST), options.seed)
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
    train = data.train.choose(options.train_size, options.seed)
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
    return load_unseen_letters(shape[1])


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
