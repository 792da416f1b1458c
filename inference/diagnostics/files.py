"""Checks that a posterior's file allows, whatever system wrote it: coverage, calibration, regret against NUTS, mixing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.files import check_plain
from inference.diagnostics.findings import Finding
from inference.diagnostics.nuts import r_hat
from inference.diagnostics.regret import regret

NUTS = "nuts"
"""What the name of NUTS's file starts with, where a run has sampled it."""


def examine_files(paths: Sequence[Path]) -> list[Finding]:
    """One finding for each ``InferenceData`` file of a run; where one is NUTS's, the others' regret is against it.

    Raises:
        UserError: a file is damaged, or holds no predictions of held-out items with known targets.
    """
    read = {path.stem: read_file(path) for path in paths}
    sampled = [name for name in read if name.startswith(NUTS)]
    reference = densities(read[sampled[0]]) if len(sampled) == 1 else None
    return [examine_file(name, data, None if name in sampled else reference) for name, data in read.items()]


def read_file(path: Path) -> Any:
    """``InferenceData`` of a file, in memory.

    Raises:
        UserError: no such file, or no predictions with known targets in it.
    """
    check_plain(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at import
        import arviz

        try:
            data: Any = arviz.InferenceData.from_netcdf(str(path))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged or no InferenceData file: {' '.join(str(error).split())}") from None
    if not {"predictions", "predictions_constant_data"} <= set(data.groups()) or not is_known(data):
        raise UserError(f"{path} holds no predictions of held-out items whose targets are known")
    return data


def is_known(data: Any) -> bool:
    """Whether in ``data``, an ``InferenceData``, predictions of classes, or of numbers, stand beside their true values."""
    predicted, true = set(data.predictions), set(data.predictions_constant_data)
    classes = {"probabilities"} <= predicted and "labels" in true
    return "log_density" in predicted and (classes or ({"mean", "y"} <= predicted and "y" in true))


def densities(data: Any) -> Tensor:
    """log p(y given x, w) of held-out targets of ``data``, an ``InferenceData``, nats: ``[chains, draws, *items]``."""
    return torch.as_tensor(np.array(data.predictions["log_density"])).double()


def examine_file(name: str, data: Any, reference: Tensor | None) -> Finding:
    """The checks of one file.

    Args:
        data: an ``InferenceData``.
        reference: NUTS's log densities of the same held-out targets, ``[chains, draws, *items]``.
    """
    predictions, known = data.predictions, data.predictions_constant_data
    logs = densities(data)
    by_item = mean_density(logs.flatten(0, 1))
    found = None
    if reference is not None and reference.shape[2:] == logs.shape[2:]:
        single = by_item.dim() == 1  # items of one data set: each is a task of one query
        found = regret(*(t[..., None] if single else t for t in (chain_means(reference), by_item)))
    expected = predictions["probabilities" if "probabilities" in predictions else "mean"]
    values = torch.as_tensor(np.array(expected)).double()
    classes = "probabilities" in predictions
    drawn = values.flatten(0, 1).flatten(1, -2) if classes else None
    return Finding(
        name,
        regret=found,
        reference=None if found is None else "NUTS",
        levels=None if classes else levels(predictions["y"], known["y"]),
        nll=float(-by_item.mean()),
        probabilities=None if drawn is None else drawn.mean(0),
        drawn=drawn,
        labels=torch.as_tensor(np.array(known["labels"])).long().flatten() if classes else None,
        r_hat=float(r_hat(values).max()) if name.startswith(NUTS) else None,
    )


def mean_density(logs: Tensor) -> Tensor:
    """log of the mean density over draws ``[draws, ...]``."""
    return logs.logsumexp(0) - float(np.log(len(logs)))


def chain_means(logs: Tensor) -> Tensor:
    """log of each chain's mean density: ``[chains, draws, ...]`` to ``[chains, ...]``."""
    return mean_density(logs.movedim(1, 0))


def levels(drawn: Any, true: Any) -> Tensor:
    """Predictive distribution functions at true targets, ``drawn`` from draws of the targets.

    Among draws equal to the target, as counts are, the level is uniform (from seed 0), so that right predictions have uniform
    levels whatever the targets are. Source: Czado, Gneiting and Held 2009, randomised PIT.
    """
    draws, targets = (torch.as_tensor(np.array(values)).double() for values in (drawn, true))
    draws = draws.flatten(0, 1)
    below, ties = (draws < targets).double().mean(0), (draws == targets).double().mean(0)
    return below + ties * torch.rand(ties.shape, dtype=ties.dtype, generator=torch.Generator().manual_seed(0))
