"""ArviZ ``InferenceData`` of any system's draws."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

SAMPLED = ("posterior", "prior", "posterior_predictive", "prior_predictive", "predictions", "log_likelihood")
"""Groups whose tensors have a leading dimension of draws; the others have none."""


def to_inference_data(
    groups: Mapping[str, Mapping[str, Tensor]],
    *,
    dims: Mapping[str, Sequence[str]],
    prediction_dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
):
    """Draws and data by group, as ArviZ means its groups: ``observed_data`` and ``log_likelihood`` are of what the posterior
    was conditioned on, ``predictions`` and ``predictions_constant_data`` of everything held out.

    Args:
        groups: group -> variable -> tensor: ``[draws, *dims]`` in the groups of :data:`SAMPLED`, which get one chain;
            ``[*dims]`` in the others. Empty groups are left out.
        dims: variable -> names of its dimensions behind the draws.
        prediction_dims: the same for variables of the groups ``predictions`` and ``predictions_constant_data`` that differ.
        coords: dimension -> names along it.
        attributes: of the whole, such as command, method, β and seed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at import
        import arviz

    def arrays(name: str) -> dict[str, Any]:
        converted = {key: tensor.detach().cpu().numpy() for key, tensor in groups[name].items()}
        return {key: array[None] for key, array in converted.items()} if name in SAMPLED else converted

    filled = {name: arrays(name) for name, variables in groups.items() if variables}
    data = arviz.from_dict(
        **filled,  # type: ignore[arg-type]
        dims={key: list(names) for key, names in dims.items()},
        coords={key: list(names) for key, names in (coords or {}).items()},
        pred_dims={key: list(names) for key, names in {**dims, **(prediction_dims or {})}.items()},
        pred_coords={key: list(names) for key, names in (coords or {}).items()},
    )
    data.attrs.update(attributes or {})
    return data
