"""What the pictures of all systems share; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]


STYLE: Any = {"figure.dpi": 120, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}


def reliability_diagram(
    named: Mapping[str, tuple[Tensor, Tensor]], bins: int = 15, *, colours: Sequence[str] = COLOURS
) -> Figure:
    """Accuracy against confidence, above how often each confidence occurs; bins of fewer than ten items have no point.

    Args:
        named: label -> (probabilities ``[n, way]``, labels ``[n]``).
        colours: one per label.
    """
    edges = np.linspace(0, 1, bins + 1)
    with plt.rc_context(STYLE):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(4.4, 4.8), sharex=True, height_ratios=(3, 1), layout="constrained")
        top.plot([0, 1], [0, 1], color="grey", lw=1, label="perfect calibration")
        for colour, (name, (probabilities, labels)) in zip(colours, named.items(), strict=False):
            confidence, prediction = (t.cpu().numpy() for t in probabilities.max(-1))
            correct = prediction == labels.cpu().numpy()
            index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
            counts = np.bincount(index, minlength=bins)
            filled = counts >= 10
            mean_confidence = np.bincount(index, confidence, minlength=bins)[filled] / counts[filled]
            accuracy = np.bincount(index, correct, minlength=bins)[filled] / counts[filled]
            top.plot(mean_confidence, accuracy, marker="o", ms=4, color=colour, label=name)
            bottom.stairs(counts / counts.sum(), edges, color=colour)
        top.set(ylabel="accuracy (fraction)", xlim=(0, 1), ylim=(0, 1))
        top.legend(fontsize=8)
        bottom.set(xlabel="confidence (largest predicted probability)", ylabel="share of items")
    return figure


def show_image(axis, image: Tensor) -> None:
    """One uint8 image ``[1 or 3, height, width]``."""
    picture = image.permute(1, 2, 0).cpu().numpy()
    axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
