"""What TensorBoard shows of a finished run, beside the curves of its stages: options with final scores, and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from torch.utils.tensorboard import SummaryWriter

from inference.runs.folder import RunFolder
from inference.runs.values import plain

SUMMARY = "summary"
SCORES = (
    "accuracy",
    "nll",
    "ece",
    "brier",
    "rmse",
    "rate",
    "distortion",
    "objective",
    "auroc",
    "novel_accuracy",
    "both_accuracy",
)
"""Fields of records that are final scores."""


def final_scores(rows: Iterable[tuple[str | None, Mapping[str, Any]]]) -> dict[str, float]:
    """Scores of test ``rows`` of ``metrics.json`` by tag, ``test/<who>/<score>``: each row with whose it is, ``None`` where it
    is not shown."""
    return {
        "/".join(filter(None, ("test", who, name))): float(row[name])
        for who, row in rows
        if row["split"] == "test" and who is not None
        for name in SCORES
        if row.get(name) is not None
    }


def write_summary(run: RunFolder, options: Any, scores: Mapping[str, float], pictures: Iterable[Path]) -> Path:
    """``logs/summary`` of the ``run``: its ``options`` (a dataclass) as hyperparameters with their ``scores`` by tag, and the
    ``pictures``, PNG files, as ``pictures/<name>``. What an earlier end of the same run wrote is replaced."""
    folder = run.path / "logs" / SUMMARY
    for old in folder.glob("events.*"):
        old.unlink()
    values = {field.name: plain(getattr(options, field.name)) for field in fields(options)}
    with SummaryWriter(str(folder)) as board:
        known = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()}
        board.add_hparams(known, dict(scores), run_name=".")
        for picture in pictures:
            pixels = (255 * plt.imread(picture)[..., :3]).round().astype("uint8")
            board.add_image(f"pictures/{picture.stem}", pixels, dataformats="HWC")
    return folder
