"""From fitted variants to records of ``metrics.json`` and the table a run ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from data.episodes import EpisodeSampler, TaskSpec
from data.items import LabelledItems
from data.seeding import mix_seed
from inference.evaluation.evaluate import evaluate
from inference.evaluation.metrics import Scores
from inference.evaluation.tables import align
from inference.meta.options import SibOptions, Variant
from inference.meta.sib import SIB
from inference.runs.folder import RunFolder
from inference.runs.options import split_commas
from inference.runs.tensors import load_features

Record = dict[str, Any]
TEST_SEED = 1_000_003  # test tasks are the same for every training seed


def evaluate_variant(
    sib: SIB, part: LabelledItems, spec: TaskSpec, *, split: str, tasks: int, steps: int | None = None
) -> list[Record]:
    """One record for each number of steps, 0 … K, on the same tasks.

    Args:
        part: backbone features ``[n, D]`` (they are mapped here).
        split: the record's ``split``.
    """
    mapped = LabelledItems(sib.space(part.items).detach(), part.labels, part.class_names)
    sampler = EpisodeSampler(mapped, spec, split=f"{split} split")
    scores = evaluate(sib.model, sib.guide, sampler, tasks=tasks, seed=mix_seed(TEST_SEED), steps=steps)
    return [make_record(sib, spec, split, k, score) for k, score in enumerate(scores)]


def make_record(sib: SIB, spec: TaskSpec, split: str, steps: int, scores: Scores) -> Record:
    """A flat record; ``trained_steps`` is the K the guide was trained with, ``steps`` the K it was read at."""
    return {
        "split": split,
        "steps": steps,
        "way": spec.way,
        "shot": spec.shot,
        "queries": spec.queries,
        "balanced": spec.balanced,
        "beta": sib.variant.beta if sib.options.posterior == "gaussian" else None,
        **asdict(scores),
        "trained_steps": sib.variant.steps,
        "predictor": sib.variant.predictor,
        "posterior": sib.options.posterior,
    }


def choose_variant(fitted: Mapping[Variant, SIB], run: RunFolder) -> Variant:
    """The variant with the best accuracy on validation tasks after K steps; the K = 0 references do not take part."""
    return max(candidates(fitted), key=lambda variant: validation_record(fitted[variant], run)["accuracy"])


def candidates(fitted: Iterable[Variant]) -> list[Variant]:
    """Variants with the largest K of the run."""
    most = max(variant.steps for variant in fitted)
    return [variant for variant in fitted if variant.steps == most]


def validation_record(sib: SIB, run: RunFolder) -> Record:
    """The variant's record on 600 validation tasks."""
    part = load_features(run.features)["val"]
    return evaluate_variant(sib, part, sib.options.spec(), split="val", tasks=600)[-1]


def evaluate_run(options: SibOptions, fitted: Mapping[Variant, SIB], run: RunFolder) -> list[Record]:
    """Validation and test records of every variant, and of the chosen one under every protocol.

    ``selected`` marks the records of the variant that validation tasks chose and of its K = 0 reference.
    """
    features = load_features(run.features)
    records = [validation_record(sib, run) for sib in fitted.values()]
    accuracy = dict(zip(fitted, (record["accuracy"] for record in records), strict=True))
    chosen = max(candidates(fitted), key=accuracy.__getitem__)
    protocols = split_commas(options.protocols)
    for sib in fitted.values():
        for protocol, imbalance in (("standard", None), ("imbalanced", 2.0)):
            if protocol in protocols:
                spec = options.spec(imbalance=imbalance)
                records += evaluate_variant(sib, features["test"], spec, split="test", tasks=options.test_tasks)
    for record in records:
        same = (record["predictor"], record["beta"] or 0.0) == (chosen.predictor, chosen.beta)
        record["selected"] = same and record["trained_steps"] in (0, chosen.steps)
    return records


def final_records(records: Iterable[Record]) -> list[Record]:
    """Test records read at the K they were trained with: the rows of the table."""
    return [r for r in records if r["split"] == "test" and r["steps"] == r["trained_steps"]]


def format_table(records: Iterable[Record]) -> str:
    """The closing table as text; ``*`` marks the variant chosen on validation tasks."""
    header = ("", "queries", "predictor", "β", "K", "accuracy %", "NLL", "ECE %", "Brier", "rate", "distortion")
    rows = [header]
    for record in sorted(records, key=lambda r: (not r["balanced"], r["predictor"], r["beta"] or 0, r["steps"])):
        rows.append(
            (
                "*" if record.get("selected") else " ",
                "balanced" if record["balanced"] else "imbalanced",
                record["predictor"],
                "-" if record["beta"] is None else f"{record['beta']:g}",
                str(record["steps"]),
                f"{100 * record['accuracy']:.2f} ± {100 * record['ci95']:.2f}",
                f"{record['nll']:.3f}",
                f"{100 * record['ece']:.1f}",
                f"{record['brier']:.3f}",
                "-" if record["rate"] is None else f"{record['rate']:.1f}",
                f"{record['distortion']:.1f}",
            )
        )
    return align(rows, left=(0, 1, 2))
