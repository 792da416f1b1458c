"""What a student writes as ArviZ ``InferenceData``; see :mod:`inference.evaluation.arviz` for the groups.

Nothing is latent: the weights of student and decoders are points, and stand in ``posterior`` as such, the same in every draw.
What is stochastic are predictions: ``labels``, and the teacher's layers ``teacher.<layer>`` as the decoders q(t given s)
predict them, of which units and positions are thinned by the rule of :func:`inference.evaluation.arviz.thinned`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from inference.evaluation.arviz import (
    LOO,
    POINT,
    Group,
    choose_observed,
    item_dims,
    parameter_dims,
    thinned,
    to_inference_data,
    whole_chains,
)
from models.distillation.decoders import SMALLEST_VARIANCE
from models.distillation.model import DistillationModel
from models.networks.layers import embed

NUM_SAMPLES, KEPT_ITEMS, KEPT_POINTS, KEPT_UNITS = 100, 100, 100, 27  # draws, items, numbers of a parameter and of a layer


class Student(Protocol):
    """What is asked of a student; see :class:`~inference.vid.vid.VID`."""

    @property
    def model(self) -> DistillationModel: ...

    @property
    def student(self) -> nn.Module: ...

    def decoded(self, x: Tensor) -> Iterator[dict[str, tuple[Tensor, Tensor]]]: ...


@dataclass(frozen=True)
class Predicted:
    """What a student says of some items.

    Attributes:
        labels: p(y given x), batch_shape ``[n]``.
        layers: the decoders' predictions of the teacher's layers by variable, thinned: mean and standard deviation,
            ``[n, *kept]``.
        found: what these layers are, ``[n, *kept]``.
        dims, coords: of the layers.
    """

    labels: dist.Categorical
    layers: dict[str, tuple[Tensor, Tensor]]
    found: dict[str, Tensor]
    dims: dict[str, list[str]]
    coords: Mapping[str, Sequence[Any]]

    def sample(self, draws: int) -> dict[str, Tensor]:
        """Draws of labels and layers, ``[draws, n, *kept]``."""
        layers = {name: torch.distributions.Normal(*moments).sample((draws,)) for name, moments in self.layers.items()}
        return {"labels": self.labels.sample((draws,)), **layers}


@torch.no_grad()
def student_to_arviz(
    vid: Student,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    train: LabelledItems | None = None,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
):
    """``InferenceData`` of a student; see :meth:`inference.vid.vid.VID.to_arviz`."""
    draws = whole_chains(num_samples)
    posterior, note = points(vid.model, draws)
    notes = {"draws": f"predictions are independent draws; the weights are {POINT}", "loo": LOO["point"]}
    notes["thinned"] = note + f"; of each teacher layer at most {KEPT_UNITS} numbers" * bool(vid.model.decoders)
    groups = {"posterior": posterior}
    with seeded(mix_seed(seed)):
        if train is not None:
            order = choose_observed(len(train), KEPT_ITEMS, seed)
            groups |= observed_groups(vid, train.items[order], train.labels[order], order, draws)
            notes["conditioned_on"] = f"{len(train)} training items, of which observed_data holds {len(order)}"
        if x is not None:
            groups |= held_out_groups(vid, x, y, draws, train.class_names if train is not None else ())
    return to_inference_data(groups, attributes=notes | dict(attributes or {}))


def points(model: DistillationModel, draws: int) -> tuple[Group, str]:
    """The student's parameters ``student.<name>`` and the decoders' standard deviations ``scale.<layer>``, the same in every
    draw; and the attribute ``thinned``."""
    values = {f"student.{name}": parameter.detach()[None] for name, parameter in model.student.named_parameters()}
    dims = parameter_dims({name: value.shape[1:] for name, value in values.items()})
    for layer, decoder in model.decoders.items():
        if decoder.spread is None:  # else it is no number, but a function of the student's layer
            values[f"scale.{layer}"] = F.softplus(decoder.alpha).add(SMALLEST_VARIANCE).sqrt().flatten()[None]
            dims[f"scale.{layer}"] = [f"scale.{layer}.unit"]
    group, note = thinned(values, dims, kept=KEPT_POINTS)
    repeated = {name: value.expand(draws, *value.shape[1:]) for name, value in group.values.items()}
    return Group(repeated, group.dims, group.coords), note


def predict(vid: Student, x: Tensor) -> Predicted:
    """What a student says of items ``[n, *item]``."""
    moments: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for pairs in vid.decoded(x):
        for layer, (s, t) in pairs.items():
            q = vid.model.decoders[layer](s)
            moments.setdefault(f"teacher.{layer}", []).append((q.mean.cpu(), q.variance.sqrt().cpu(), t.cpu()))
    stacked = {name: torch.stack([torch.cat(part) for part in zip(*parts, strict=True)]) for name, parts in moments.items()}
    inner = {name: [f"{name}.unit", f"{name}.row", f"{name}.column"][: value.dim() - 2] for name, value in stacked.items()}
    dims = {name: ["item", *names] for name, names in inner.items()}
    group, _ = thinned(stacked, dims, whole=["item"], kept=KEPT_UNITS)
    layers = {name: (loc, scale) for name, (loc, scale, _) in group.values.items()}
    found = {name: t for name, (_, _, t) in group.values.items()}
    coords = {dim: names for dim, names in group.coords.items() if dim != "item"}
    return Predicted(dist.Categorical(logits=embed(vid.student, x)), layers, found, dims, coords)


def observed_groups(vid: Student, x: Tensor, y: Tensor, order: Tensor, draws: int) -> dict[str, Group]:
    """Groups of training items, the ones numbered by ``order``: what student and decoders were fitted to."""
    predicted = predict(vid, x)
    dims = {"labels": ["item"], **predicted.dims}
    coords = {"item": order.tolist(), **predicted.coords}
    density = predicted.labels.log_prob(y).expand(draws, -1)
    return {
        "posterior_predictive": Group(predicted.sample(draws), dims, coords),
        "observed_data": Group({"labels": y, **predicted.found}, dims, coords),
        "log_likelihood": Group({"labels": density}, {"labels": ["item"]}, {"item": order.tolist()}),
        "constant_data": Group({"x": x}, {"x": item_dims(x)}, {"item": order.tolist()}),
    }


def held_out_groups(vid: Student, x: Tensor, y: Tensor | None, draws: int, class_names: Sequence[str]) -> dict[str, Group]:
    """Groups of items that were not trained on; the teacher's layers are known, whether or not the labels are."""
    predicted = predict(vid, x)
    predictions = predicted.sample(draws) | {"probabilities": predicted.labels.probs.expand(draws, -1, -1)}
    constant = {"x": x, **predicted.found}
    if y is not None:
        density = predicted.labels.log_prob(y)
        predictions["log_density"] = density.expand(draws, -1)
        constant |= {"labels": y, "log_predictive_density": density}
    named = {"x": item_dims(x), "probabilities": ["item", "class"], **predicted.dims}
    classes = {"class": list(class_names)} if class_names else {}
    return {
        "predictions": Group(predictions, {k: named.get(k, ["item"]) for k in predictions}, {**predicted.coords, **classes}),
        "predictions_constant_data": Group(constant, {k: named.get(k, ["item"]) for k in constant}, predicted.coords),
    }
