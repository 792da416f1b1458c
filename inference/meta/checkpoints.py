"""Checkpoints of fitted variants: what stands in them, also in those of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.episodes import TaskSpec
from data.errors import UserError
from inference.meta.settings import GuideSettings
from inference.meta.variants import Variant
from inference.runs.folder import RunFolder

RENAMED = {
    "objective.guide.initialisation.": "objective.guide.start.",
    "objective.guide.log_inner_lr": "objective.guide.rule.log_size",
    "objective.guide.scale_shift": "objective.guide.rule.scale_shift",
}
"""Parameters of checkpoints written by versions before 0.2, and what they are called now."""


def variant_file(run: str | Path | RunFolder, variant: str | None) -> Path:
    """The file of a variant in a run folder; of the one that validation tasks chose when it is not named.

    Raises:
        UserError: the folder or the variant is missing.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.existing(run)
    name = variant or selected_name(folder)
    path = folder.checkpoints / f"{name}.safetensors"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.checkpoints.glob("*-k*.safetensors") if "lwof" not in p.stem))
        raise UserError(f"{folder.path} has no variant {name!r}: it has {known or 'none'}")
    return path


def rank_of(directions: Tensor) -> int:
    """The rank of a feature space of these ``directions`` ``[D, rank]``, where a file does not say: an identity only
    normalises."""
    square = directions.shape[0] == directions.shape[1]
    return 0 if square and torch.equal(directions, torch.eye(len(directions))) else directions.shape[1]


def read_settings(written: Mapping[str, Any]) -> GuideSettings:
    """The settings of a checkpoint, as they were ``written``, also of versions before 0.3, whose guides had no gate, and before
    0.5, whose steps were in units of the prior or of the weights."""
    units = {"units": "prior" if written["whiten"] else "weights"} if "whiten" in written else {}
    known = {"gate": False, "counted": False, "power": 1.0, "train_features": "none", **units, **written}
    known = {"backbone": GuideSettings.backbone, "image_shape": None, **known}
    if known["image_shape"] is not None:
        known["image_shape"] = tuple(known["image_shape"])
    return GuideSettings(**{field.name: known[field.name] for field in fields(GuideSettings)})


def read_spec(written: Mapping[str, Any]) -> TaskSpec:
    """The tasks of a checkpoint, as they were ``written``, also of versions before 0.5, which had none within alphabets, by
    descriptions, of attributes or of fixed labels."""
    known = {"within_alphabet": False, "described": False, "attributes": None, "partition": None, **written}
    return TaskSpec(**{field.name: known[field.name] for field in fields(TaskSpec)})


def read_variant(metadata: Mapping[str, Any]) -> Variant:
    """The variant of a checkpoint, also of versions before 0.2, which left method and posterior to the options."""
    known = metadata["variant"]
    if "method" in known:
        return Variant(**known)
    posterior = metadata["options"]["posterior"]
    return Variant("sib", known["predictor"], posterior, known["beta"] if posterior == "gaussian" else None, known["steps"])


def selected_name(run: RunFolder) -> str:
    """The name of the variant that validation tasks chose, from ``metrics.json``.

    Raises:
        UserError: none is there, or the run is of another kind.
    """
    content = run.results()
    chosen = [record for record in content.get("results", []) if record.get("selected")]
    ours = content.get("command", "svi_sib") in ("sib", "meta", "svi_sib", "svi_meta")
    if not ours or not all("trained_steps" in record for record in chosen):
        kind = f"{content.get('command')} on {content.get('dataset')}"
        raise UserError(f"{run.path} is a run of {kind}: give one of svi_sib or svi_meta on images or features")
    for record in sorted(chosen, key=lambda record: -record["trained_steps"]):
        if "variant" in record:
            return str(record["variant"])
        return f"{record['predictor']}-beta{record['beta'] or 0.0:g}-k{record['trained_steps']}"  # before 0.2
    raise UserError(f"{run.metrics} names no selected variant: did the run finish? Continue it with --resume {run.path}")
