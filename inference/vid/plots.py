"""The pictures of a VID run, one function each; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from inference.evaluation.figures import COLOURS, STYLE, show_image
from inference.vid.report import VidRecord, group_runs, mean_and_spread


def colour(method: str, methods: Sequence[str]) -> str:
    """The colour of ``method``: each of the ``methods`` of a run has its own in all pictures."""
    return COLOURS[list(methods).index(method) % len(COLOURS)]


def accuracy_by_images(records: Sequence[VidRecord]) -> Figure:
    """Test accuracy against images per class (or labels, where several numbers were tried), mean ± standard deviation."""
    groups = group_runs(records)
    methods = list(dict.fromkeys(method for *_, method in groups))
    by_labels = len({labels for _, labels, _ in groups}) > 1
    place = lambda key: (key.labels if by_labels else key.per_class) or 0  # noqa: E731
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
        for index, method in enumerate(methods):
            rows = {place(key): runs for key, runs in groups.items() if key.method == method}
            stats = [mean_and_spread([100 * r["accuracy"] for r in runs]) for runs in rows.values()]
            shifted = np.asarray(list(rows)) * 1.02 ** (index - (len(methods) - 1) / 2)  # error bars side by side
            spread = [s or 0.0 for _, s in stats]
            look: dict[str, Any] = {"marker": "o", "ms": 4, "capsize": 3, "color": colour(method, methods), "label": method}
            axis.errorbar(shifted, [m for m, _ in stats], spread, **look)
        for record in records:
            if record["method"] == "teacher":
                axis.axhline(100 * record["accuracy"], color="grey", ls="--", lw=1, label="teacher")
        ticks = sorted({place(key) for key in groups})
        axis.set(xscale="log", xlabel=f"{'labels' if by_labels else 'images'} per class", ylabel="test accuracy (%)")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.margins(x=0.1)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def information_curves(
    history: Mapping[str, tuple[Sequence[float], Sequence[float]]], entropies: Mapping[str, float]
) -> Figure:
    """The two terms of the objective over training: task loss, and the decoding gain of each teacher layer, which is the bound
    on I(t; s) plus a constant.

    Args:
        history: scalar name -> (updates, values) of one student: ``train/labels`` and ``train/teacher.<layer>``, nats per item.
        entropies: teacher layer -> Ĥ(t), nats per item; see :func:`~models.distillation.information.marginal_entropy`.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        left.plot(*history["train/labels"], color="black", marker=".")
        left.set(xlabel="update", ylabel="task loss (nats per item)", ylim=(0, None))
        for tint, (layer, entropy) in zip(COLOURS, entropies.items(), strict=False):
            updates, values = history[f"train/teacher.{layer}"]
            right.plot(updates, entropy - np.asarray(values), color=tint, marker=".", label=layer)
        right.axhline(0, color="grey", lw=1)
        right.set(xlabel="update", ylabel="gain of q(t given s) (nats per item)")
        right.set_yscale("symlog", linthresh=10)
        curves = np.concatenate([np.asarray(line.get_ydata()) for line in right.lines[:-1]])
        right.set_ylim(min(0.0, 1.3 * curves.min()), 2 * curves.max())
        figure.legend(loc="outside right upper", fontsize=8, title="teacher's layer", title_fontsize=8)
    return figure


def surprise_maps(images: Tensor, maps: Mapping[str, Tensor], *, shown: int = 6) -> Figure:
    """Where the student knows its teacher: −log q(t given s) over space, a row per layer, for the images at even ranks of
    the first layer's mean. Layers of a single position have no row.

    Args:
        images: uint8 ``[n, channels, height, width]``.
        maps: teacher layer -> ``[n, h, w]``, nats per position.
        shown: how many images.

    Raises:
        ValueError: no layer has more than one position.
    """
    wide = {layer: m for layer, m in maps.items() if max(m.shape[-2:]) > 1}
    if not wide:
        raise ValueError("no layer has more than one position to show")
    first = next(iter(wide.values()))
    order = first.mean((-2, -1)).argsort()
    chosen = order[np.linspace(0, len(order) - 1, shown).round().astype(int)]
    size = [1.25 * shown + 1.4, 1.3 * (len(wide) + 1) + 0.3]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(len(wide) + 1, shown, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        for column, index in enumerate(chosen.tolist()):
            show_image(axes[0, column], images[index])
        axes[0, 0].set_ylabel("image", fontsize=8)
        for row, (layer, values) in zip(axes[1:], wide.items(), strict=True):
            part = values[chosen].numpy()
            for axis, picture in zip(row, part, strict=True):
                shown_map = axis.imshow(picture, vmin=part.min(), vmax=part.max(), cmap="viridis")
            row[0].set_ylabel(layer, fontsize=8)
            bar = figure.colorbar(shown_map, ax=row.tolist(), fraction=0.03, pad=0.01)
            bar.ax.tick_params(labelsize=7)
            bar.set_label("nats per position", fontsize=7)
    return figure
