"""What a β-BNN posterior writes as ArviZ ``InferenceData`` (:meth:`~inference.bnn.posterior.NetworkPosterior.to_arviz`).

============================= =========================================================================================
``posterior``                 draws of the weights, one variable per parameter, by its name. A parameter of more than
                              1000 numbers is thinned to 1000, evenly spaced in row-major order, first and last
                              included; their indices are the coordinate ``<name>_index``, and the attribute
                              ``thinned`` names it.
``observed_data``             ``labels`` of training items; at most 1000, a seeded choice.
``log_likelihood``            log p(y given x, w) of these, nats.
``posterior_predictive``      draws of their ``labels``.
``constant_data``             their inputs ``x`` and their ``index`` among the training items.
``predictions``               of held-out items: draws of ``labels``; class ``probabilities``, or the ``mean`` of other
                              targets; with known targets ``log_density``, log p(y given x, w) of each draw, nats.
``predictions_constant_data`` their inputs ``x`` and, where known, their ``labels`` and ``log_predictive_density``,
                              log E_q p(y given x, w), nats.
============================= =========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEPT_NUMBERS, KEPT_ITEMS = 1000, 1000  # of a parameter, of the training items


@dataclass(frozen=True)
class Content:
    """What :func:`~inference.evaluation.arviz.to_inference_data` takes.

    Attributes:
        groups: group -> variable -> tensor.
        dims: variable -> names of its dimensions behind the draws.
        coords: dimension -> names along it.
        notes: attributes.
    """

    groups: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    dims: dict[str, list[str]] = field(default_factory=dict)
    coords: dict[str, list[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def weight_content(weights: Mapping[str, Tensor], parameters: Sequence[str] | None = None) -> Content:
    """The group ``posterior``.

    Args:
        weights: parameter name -> draws ``[draws, *shape]``.
        parameters: names of those to keep, whole; when not given, all are kept and large ones thinned.

    Raises:
        ValueError: an unknown name.
    """
    if unknown := set(parameters or ()) - weights.keys():
        raise ValueError(f"no parameter {', '.join(map(repr, sorted(unknown)))}: choose {', '.join(weights)}")
    content = Content(groups={"posterior": {}}, notes={"thinned": "none", "left_out": "none"})
    thinned = []
    for name, draws in weights.items():
        if parameters is not None and name not in parameters:
            continue
        numbers = draws[0].numel()
        if parameters is None and numbers > KEPT_NUMBERS:
            index = spread_evenly(numbers, KEPT_NUMBERS)
            draws = draws.flatten(1)[:, index.to(draws.device)]
            content.dims[name], content.coords[f"{name}_index"] = [f"{name}_index"], index.tolist()
            thinned.append(f"{name}: {KEPT_NUMBERS} of {numbers}")
        else:
            content.dims[name] = [f"{name}_dim_{i}" for i in range(draws.dim() - 1)]
        content.groups["posterior"][name] = draws
    if thinned:
        content.notes["thinned"] = "; ".join(thinned) + " (evenly spaced in row-major order, see <name>_index)"
    if left := [name for name in weights if parameters is not None and name not in parameters]:
        content.notes["left_out"] = ", ".join(left)
    return content


def spread_evenly(numbers: int, kept: int) -> Tensor:
    """``kept`` different indices from 0 to ``numbers − 1``, both included, as evenly spaced as whole numbers can be."""
    return torch.linspace(0, numbers - 1, kept, dtype=torch.float64).round().long()
