"""From fitted algorithms to records of ``metrics.json`` and the table a β-BNN run ends with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from data.items import LabelledItems, SupervisedData
from data.seeding import seeded
from data.sources.glyphs import load_unseen_letters
from inference.bnn.algorithms import Algorithm
from inference.bnn.comparison import DATA_WIDTHS, compare
from inference.bnn.fitting import Fit
from inference.bnn.posterior import NetworkPosterior, WeightPosterior
from inference.diagnostics.weight_information import generalisation_bound, sharpness, weight_information
from inference.evaluation import tables
from inference.evaluation.arviz import save_posteriors
from inference.evaluation.tables import Column, number
from inference.runs.folder import RunFolder

SCORED_AT_MOST = 10_000  # training items that distortion and training accuracy are estimated from
QUANTILES = (0.05, 0.5, 0.95)
SAVED_DRAWS, SAVED_ITEMS = 100, 100  # draws of a saved posterior, test items it predicts


class BnnRecord(TypedDict):
    """What ``metrics.json`` says of one algorithm at one β; ``None`` where a number does not exist. Fractions and nats.

    Scores are of the posterior predictive unless they say Gibbs: that is a single draw of the weights, averaged over draws.

    Attributes:
        split: ``"test"``, or ``"val"``: trained on part of the training data and scored on the rest.
        algorithm, beta: what was fitted.
        items: n, training items.
        weights, random_weights: of the network; and how many of them are random, which are those that the rate is of.
        accuracy, ece, brier: of held-out items, with classes.
        nll: −log predictive density per held-out item.
        rmse: of held-out items with other targets, in their unit.
        rate: mean over posteriors of KL(q_k ‖ m) against a prior; ``None`` for points, and where m is a mixture.
        mixture_rate: the same where m is the mixture of posteriors of the round before, as it was while q_k trained: another
            quantity, at most about log K where posteriors stay where they are.
        rate_against: what m was: ``"prior"``, fixed or learned, or ``"mixture"``.
        distortion: −E_q Σ log p over the training data, from at most 10 000 of them.
        neg_elbo: distortion + rate over the training data, at least −log evidence; none against a mixture. SWAG's is of its
            Gaussian under the prior that it was trained with, and nothing has minimised it.
        evidence: estimate of log p(y given x) of the training data, where the method has one.
        guess: n log C, the distortion of uniform guessing, with classes.
        scale_quantiles: 5, 50 and 95 % quantiles of the weights' standard deviations.
        train_accuracy, train_nll: of at most 10 000 training items, with as many draws as ``distortion``.
        gibbs_accuracy, train_gibbs_accuracy: of held-out and training items, with the same draws.
        gap: Gibbs error on held-out items less Gibbs error on training items, the same draws for both.
        information: upper bound on I(w; S): the rate, where it is against a prior that is not learned. Against a mixture the
            Monte Carlo estimate between its bootstrap samples, at most log K, which is no bound.
        bound: on the expectation of ``gap``, sqrt(information/2n), where ``information`` is an upper bound and nothing but
            the posterior was learned (see :func:`bound_holds`).
        sharpness: rise of the loss around the first posterior's mean, nats per item.
        seconds: of the fit.
        warning: where standard deviations did not reach their optimum.
        kl_inside, kl_outside, width, r_hat: beside NUTS of the same run, where there is one and inputs are one number each: see
            :class:`~inference.bnn.comparison.Agreement`. NUTS's own are of half of its chains beside the others.
        auroc: of the predictive entropy as a sign of items of another kind.
    """

    split: str
    algorithm: str
    beta: float
    items: int
    weights: int
    random_weights: int
    accuracy: float | None
    nll: float
    ece: float | None
    brier: float | None
    rmse: float | None
    rate: float | None
    mixture_rate: float | None
    rate_against: str | None
    distortion: float
    neg_elbo: float | None
    evidence: float | None
    guess: float | None
    scale_quantiles: list[float] | None
    train_accuracy: float | None
    train_nll: float
    gibbs_accuracy: float | None
    train_gibbs_accuracy: float | None
    gap: float | None
    information: float | None
    bound: float | None
    sharpness: float | None
    seconds: float | None
    warning: str | None
    auroc: NotRequired[float]
    kl_inside: NotRequired[float]
    kl_outside: NotRequired[float]
    width: NotRequired[float]
    r_hat: NotRequired[float | None]


def make_record(bnn: Fit, train: LabelledItems, held_out: LabelledItems, *, split: str, samples: int, seed: int) -> BnnRecord:
    """The record of a fit.

    Args:
        train: all that it was trained on.
        held_out: what it is scored on.
        split: their name.
        samples: draws of the posterior predictive; a quarter of them on training items.
        seed: of the choice among training items.
    """
    posterior, few = bnn.posterior, max(samples // 4, bnn.posterior.size)
    part = train.choose(min(len(train), SCORED_AT_MOST), seed)
    scores, on_train = posterior.scores(held_out, num_samples=samples), posterior.scores(part, num_samples=few)
    classes = "accuracy" in scores
    gibbs = posterior.scores(held_out, num_samples=few)["gibbs_accuracy"] if classes else None
    distortion = on_train["distortion"] * len(train) / len(part)
    nats = None if bool(bnn.rates.isnan().any()) else float(bnn.rates.mean())
    rate = None if bnn.algorithm.is_mixture else nats
    log_scales = posterior.log_scales()
    information = weight_information_of(bnn, rate)
    bounded = classes and information is not None and bound_holds(bnn)
    return {
        "split": split,
        "algorithm": bnn.algorithm.value,
        "beta": bnn.beta,
        "items": len(train),
        "weights": sum(parameter.numel() for parameter in posterior.model.network.parameters()),
        "random_weights": posterior.model.num_weights,
        "accuracy": scores.get("accuracy"),
        "nll": scores["nll"],
        "ece": scores.get("ece"),
        "brier": scores.get("brier"),
        "rmse": scores.get("rmse"),
        "rate": rate,
        "mixture_rate": nats if bnn.algorithm.is_mixture else None,
        "rate_against": bnn.rate_against,
        "distortion": distortion,
        "neg_elbo": None if rate is None else distortion + rate,
        "evidence": posterior.evidence(),
        "guess": len(train) * math.log(train.num_classes) if classes else None,
        "scale_quantiles": None if log_scales is None else scale_quantiles(log_scales),
        "train_accuracy": on_train.get("accuracy"),
        "train_nll": on_train["nll"],
        "gibbs_accuracy": gibbs,
        "train_gibbs_accuracy": on_train.get("gibbs_accuracy"),
        "gap": None if gibbs is None else on_train["gibbs_accuracy"] - gibbs,
        "information": information,
        "bound": generalisation_bound(information, len(train)) if bounded and information is not None else None,
        "sharpness": posterior_sharpness(bnn.posterior, part),
        "seconds": bnn.seconds,
        "warning": bnn.warning,
    }


def weight_information_of(bnn: Fit, rate: float | None) -> float | None:
    """``information`` of a :class:`BnnRecord`, nats; ``rate`` is KL(q ‖ m), where there is one."""
    posterior = bnn.posterior
    if not isinstance(posterior, WeightPosterior) or posterior.log_scale is None or not bnn.algorithm.is_mixture:
        return None if posterior.model.prior.sees_data else rate
    with seeded(0, device=posterior.loc.device):
        return weight_information(posterior.loc, posterior.log_scale)


def bound_holds(bnn: Fit) -> bool:
    """Whether E KL(q ‖ m) bounds I(w; S): m knows nothing of the data, and nothing but q was learned from them.

    Not so for a mixture of posteriors, a prior with learned parameters, parameters of the network that are not random, and
    running statistics of batch norm. β may be anything, and may have been chosen on the data: q is then their function still.
    """
    model = bnn.posterior.model
    learned = any(p.requires_grad for part in (model.prior, model.network) for p in part.parameters())
    statistics = any(getattr(module, "track_running_stats", False) for module in model.network.modules())
    return not (model.prior.sees_data or learned or statistics)


def scale_quantiles(log_scale: Tensor) -> list[float]:
    """5, 50 and 95 % quantiles of all standard deviations, exp(``log_scale``)."""
    return [float(q) for q in np.quantile(log_scale.detach().exp().cpu().numpy(), QUANTILES)]


def posterior_sharpness(posterior: NetworkPosterior, items: LabelledItems) -> float | None:
    """Rise of the loss around the first diagonal Gaussian's mean, nats per item, on at most 1000 items; ``None`` of others."""
    if not isinstance(posterior, WeightPosterior) or posterior.log_scale is None:
        return None
    x, y = (t[:1000].to(posterior.loc.device) for t in (items.items, items.labels))

    def loss(weights: Tensor) -> Tensor:
        outputs = posterior.model.map_weights(x, weights)
        likelihood = posterior.likelihood(torch.zeros(len(weights), dtype=torch.long, device=weights.device))
        return -likelihood(outputs).log_prob(likelihood.cast(y, outputs)).mean(-1)

    with seeded(0, device=posterior.loc.device):
        return sharpness(loss, posterior.loc[0], posterior.log_scale[0])


def final_records(
    fitted: Mapping[Algorithm, Fit],
    train: LabelledItems,
    test: LabelledItems,
    outside: LabelledItems | None,
    *,
    samples: int,
    seed: int,
) -> list[BnnRecord]:
    """One record per algorithm on the test data, with ``auroc`` of the predictive entropy against ``outside`` items.

    Args:
        train: what all were trained on.
        samples, seed: see :func:`make_record`.
    """
    records = []
    for bnn in fitted.values():
        record = make_record(bnn, train, test, split="test", samples=samples, seed=seed)
        if outside is not None:
            record["auroc"] = out_of_distribution(bnn, test, outside, samples)
        records.append(record)
    if train.items.shape[1:] == (1,):
        agreements = compare({name.value: bnn.posterior for name, bnn in fitted.items()}, train.items)
        for record in records:
            record.update(agreements[record["algorithm"]]._asdict() if agreements else {})  # type: ignore[typeddict-item]
    return records


def out_of_distribution(bnn: Fit, inside: LabelledItems, outside: LabelledItems, num_samples: int) -> float:
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


COLUMNS = (
    Column("algorithm", lambda r: r["algorithm"], left=True),
    Column("β", lambda r: number(r["beta"], "g")),
    Column("accuracy %", lambda r: number(r["accuracy"], ".2f", factor=100)),
    Column("RMSE", lambda r: number(r["rmse"])),
    Column("NLL", lambda r: number(r["nll"], ".4f")),
    Column("ECE %", lambda r: number(r["ece"], ".2f", factor=100)),
    Column("rate (prior)", lambda r: number(r["rate"], ".1f")),
    Column("rate (mixture)", lambda r: number(r["mixture_rate"], ".1f")),
    Column("distortion", lambda r: number(r["distortion"], ".1f")),
    Column("−ELBO", lambda r: number(r["neg_elbo"], ".1f")),
    Column("guess", lambda r: number(r["guess"], ".1f")),
    Column("σ 5 / 50 / 95 %", lambda r: " ".join(f"{q:.2g}" for q in r["scale_quantiles"] or ()) or "-"),
    Column("−log evidence", lambda r: number(None if r["evidence"] is None else -r["evidence"], ".1f")),
    Column("gap %", lambda r: number(r["gap"], ".2f", factor=100)),
    Column("I(w; S)", lambda r: number(r["information"], ".2f")),
    Column("bound %", lambda r: number(r["bound"], ".1f", factor=100)),
    Column("AUROC", lambda r: number(r.get("auroc"), ".4f")),
    Column("seconds", lambda r: number(r["seconds"], ".0f")),
)


AGREEMENT = (
    Column("algorithm", lambda r: r["algorithm"], left=True),
    Column("KL inside", lambda r: number(r["kl_inside"], ".4f")),
    Column("KL outside", lambda r: number(r["kl_outside"], ".3f")),
    Column("width outside", lambda r: number(r["width"], ".2f")),
    Column("r-hat", lambda r: number(r["r_hat"], ".3f")),
)


def format_table(records: Iterable[BnnRecord]) -> str:
    """The closing table as text: with accuracies where targets are classes, and else with errors."""
    rows = list(records)
    empty = {"RMSE" if any(r["accuracy"] is not None for r in rows) else "accuracy %"}
    return tables.format_table(rows, [column for column in COLUMNS if column.header not in empty])


def format_agreement(records: Sequence[BnnRecord]) -> str:
    """Every approximation beside NUTS, and what that means; empty where there is no NUTS."""
    shown = [record for record in records if "kl_inside" in record]
    if not shown:
        return ""
    lines = (
        "KL: of nuts's predictive from this one's, nats per point: mean over inputs between the outermost training inputs,",
        f"and over those up to {DATA_WIDTHS} widths of the data beside them; width: standard deviation of the predictive over",
        f"that of nuts, {DATA_WIDTHS} widths outside, the worse side; nuts itself: half of its chains beside the others, and",
        "the largest r-hat of its outputs; β = 1 and nuts's prior are those of vanilla, last-layer, low-rank, laplace and swag",
    )
    return f"beside nuts\n{tables.format_table(shown, AGREEMENT)}\n\n" + "\n".join(lines)


def legend(records: Sequence[BnnRecord]) -> str:
    """What the table's columns mean."""
    lines = [
        "β: chosen on validation data, where there are several; NLL: nats per item; rate, distortion, −ELBO: nats, all items",
        "rate: KL(q ‖ m) against a prior, or against the mixture of the round before, which has seen the data",
        "gap: Gibbs error (of single draws) on test items less that on training items",
        "I(w; S): at most the rate against a prior that is not learned; against a mixture an estimate (≤ log K), and no bound",
        "bound: on the expected gap, sqrt(I(w; S)/2n); seconds: of the fit",
    ]
    if any(record["evidence"] is not None for record in records):
        lines.append("−log evidence: Laplace's estimate under its prior; −ELBO is at least −log evidence of the same prior")
    if records and records[0]["guess"] is not None:
        lines.append(f"guess: what guessing uniformly costs, n log C = {records[0]['guess']:.1f}, with rate 0")
    lines += [note for record in records if record["neg_elbo"] is not None for note in elbo_notes(record)]
    lines += [f"{record['algorithm']}: {record['warning']}" for record in records if record["warning"]]
    return "\n".join(lines)


def elbo_notes(record: BnnRecord) -> Iterator[str]:
    """What keeps this −ELBO from being compared with the others of a table."""
    name, counted, weights = record["algorithm"], record["random_weights"], record["weights"]
    if counted < weights:
        yield (
            f"{name}: rate and −ELBO count {counted} random weights of {weights}, for the others are points that cost nothing: "
            "not to be compared with rows that count all"
        )
    if name == Algorithm.SWAG:
        yield f"{name}: −ELBO is of its Gaussian under its prior; nothing has minimised it, as its width is that of SGD's noise"


def save_fits(
    fitted: Mapping[Algorithm, Fit], train: LabelledItems, data: SupervisedData, run: RunFolder, *, seed: int
) -> None:
    """ArviZ data of every algorithm; ``posterior.nc`` is the last one's."""
    test = data.test.choose(min(SAVED_ITEMS, len(data.test)), seed)

    def content(bnn: Fit) -> Any:
        known = {"command": "svi_bnn", "method": bnn.algorithm.value, "beta": bnn.beta, "dataset": data.name, "seed": seed}
        return bnn.posterior.to_arviz(
            test.items, test.labels, train=train, num_samples=SAVED_DRAWS, seed=seed, attributes=known
        )

    save_posteriors({name.value: partial(content, bnn) for name, bnn in fitted.items()}, list(fitted)[-1].value, run)
