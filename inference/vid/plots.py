"""The pictures of a VID run, one function each; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from inference.evaluation.figures import show_image
from inference.evaluation.style import STYLE, Look, headline, key, look, looks
from inference.vid.report import VidRecord, group_runs, mean_and_spread


def style(method: str, methods: Sequence[str]) -> Look:
    """Each method of a run's ``methods`` has its own look in all pictures."""
    return look(list(methods).index(method))


def accuracy_by_images(records: Sequence[VidRecord], *, classes: int | None = None, about: str = "") -> Figure:
    """Test accuracy against images per class (or labels, where several numbers were tried), mean ± standard deviation, between
    what chance and what the teacher gets right.

    Args:
        records: of students and teacher.
        classes: how many there are, for the line of chance.
        about: the run, for the title.
    """
    groups = group_runs(records)
    methods = list(dict.fromkeys(method for *_, method in groups))
    by_labels = len({labels for _, labels, _ in groups}) > 1
    place = lambda key: (key.labels if by_labels else key.per_class) or 0  # noqa: E731
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
        for index, method in enumerate(methods):
            rows = {place(key): runs for key, runs in groups.items() if key.method == method}
            stats = [mean_and_spread([100 * r["accuracy"] for r in runs]) for runs in rows.values()]
            shifted = np.asarray(list(rows)) * 1.04 ** (index - (len(methods) - 1) / 2)  # error bars side by side
            colour, marker, dash = style(method, methods)
            line: dict[str, Any] = {"marker": marker, "ls": dash, "capsize": 3, "color": colour, "label": method}
            axis.errorbar(shifted, [m for m, _ in stats], [s or 0.0 for _, s in stats], **line)
        for record in records:
            if record["method"] == "teacher":
                axis.axhline(100 * record["accuracy"], color="grey", ls="--", lw=1.2, label="teacher")
        if classes:
            axis.axhline(100 / classes, color="black", ls=":", lw=1.2, label=f"chance: 1 in {classes}")
        ticks = sorted({place(key) for key in groups})
        words = f"{'labels' if by_labels else 'images'} per class"
        axis.set(xscale="log", xlabel=words, ylabel="test accuracy (%), ± sd over runs", ylim=(0, 100))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.margins(x=0.1)
        headline(figure, "Which teaching helps a student most, where images are few?", about)
        key(figure, [axis])
    return figure


def information_curves(
    history: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    entropies: Mapping[str, float],
    *,
    names: Mapping[str, str] = MappingProxyType({}),
    about: str = "",
) -> Figure:
    """The two terms of the objective over training: task loss, and the decoding gain of each teacher layer, which is the bound
    on I(t; s) plus a constant.

    Args:
        history: scalar name -> (updates, values) of one student: ``train/labels`` and ``train/teacher.<layer>``, nats per item.
        entropies: teacher layer -> Ĥ(t), nats per item; see :func:`~models.distillation.information.marginal_entropy`.
        names: teacher layer -> what the legend calls it; itself where there is none.
        about: the run, for the title.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
        left.plot(*history["train/labels"], color="black", marker=".")
        left.set(xlabel="update", ylabel="task loss (nats per item)", ylim=(0, None))
        for (colour, marker, dash), (layer, entropy) in zip(looks(), entropies.items(), strict=False):
            updates, values = history[f"train/teacher.{layer}"]
            line: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "label": names.get(layer, layer)}
            right.plot(updates, entropy - np.asarray(values), dash, **line)
        right.axhline(0, color="grey", lw=1)
        right.set(xlabel="update", ylabel="gain of q(t given s) (nats per item)")
        right.set_yscale("symlog", linthresh=10)
        curves = np.concatenate([np.asarray(line.get_ydata()) for line in right.lines[:-1]])
        right.set_ylim(min(0.0, 1.3 * curves.min()), 2 * curves.max())
        headline(figure, "When does the student learn its task, and when what the teacher's layers know?", about)
        key(figure, [right])
    return figure


def surprise_maps(
    images: Tensor,
    maps: Mapping[str, Tensor],
    *,
    shown: int = 6,
    names: Mapping[str, str] = MappingProxyType({}),
    about: str = "",
) -> Figure:
    """Where the student knows its teacher: −log q(t given s) over space, a row per layer, for the images at even ranks of
    the first layer's mean. Layers of a single position have no row.

    Args:
        images: uint8 ``[n, channels, height, width]``.
        maps: teacher layer -> ``[n, h, w]``, nats per position.
        shown: how many images.
        names: teacher layer -> what its row is called; itself where there is none.
        about: the run, for the title.

    Raises:
        ValueError: no layer has more than one position.
    """
    wide = {layer: m for layer, m in maps.items() if max(m.shape[-2:]) > 1}
    if not wide:
        raise ValueError("no layer has more than one position to show")
    first = next(iter(wide.values()))
    order = first.mean((-2, -1)).argsort()
    chosen = order[np.linspace(0, len(order) - 1, shown).round().astype(int)]
    size = [1.25 * shown + 1.4, 1.3 * (len(wide) + 1) + 1.0]
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
            row[0].set_ylabel(names.get(layer, layer), fontsize=8)
            bar = figure.colorbar(shown_map, ax=row.tolist(), fraction=0.03, pad=0.01)
            bar.ax.tick_params(labelsize=7)
            bar.set_label("nats per position", fontsize=7)
        figure.supxlabel("best explained in the first layer  →  worst explained", fontsize=8.5)
        headline(figure, "Where in an image does the student not know its teacher?", about)
    return figure
