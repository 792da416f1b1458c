"""ArviZ ``InferenceData`` of any system's draws, and the files that hold it.

A file opens where nobody has heard of Sibyl:

.. code-block:: python

    import arviz

    data = arviz.from_netcdf("runs/…/posterior.nc")
    print(data.attrs)
    print(arviz.summary(data))
    arviz.plot_ppc(data)

============================= =========================================================================================
``posterior``                 draws of the latent sites. Independent draws stand in four blocks as four chains, so that
                              what ArviZ says of chains (r-hat, effective size, rank plots) can be read; what comes from
                              MCMC has its own chains. A point is repeated.
``prior``                     draws of the same sites from the prior, where there is one.
``prior_predictive``          draws of the observed variable (``labels`` for classes, ``y`` for numbers) under it.
``posterior_predictive``      draws of the observed variable under the posterior: what ``observed_data`` could have been.
``observed_data``             what the posterior was conditioned on, and nothing else.
``log_likelihood``            log p(y_i given x_i, w_s) of the observed data, nats: never of held-out ones.
``constant_data``             the inputs of the observed data.
``predictions``               of held-out inputs: draws of their targets, class ``probabilities`` (or the ``mean``) of each
                              draw and, where targets are known, ``log_density``, log p(y_i given x_i, w_s), nats.
``predictions_constant_data`` their inputs and, where known, targets and ``log_predictive_density``, log E_q p(y_i given
                              x_i, w), nats.
============================= =========================================================================================

Attributes: ``command``, ``method``, ``beta``, ``dataset``, ``seed``, ``version``; ``draws``: how they came about;
``conditioned_on``: in words; ``loo``: what ``arviz.loo`` of these draws is, and is not; ``thinned``: which numbers of large
variables were kept, by the rule of :func:`thinned`.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.runs.files import reserve, write_atomically
from inference.runs.folder import RunFolder
from sibyl._version import __version__

SAMPLED = ("posterior", "prior", "posterior_predictive", "prior_predictive", "predictions", "log_likelihood")
"""Groups whose tensors have a leading dimension of draws; the others have none."""
INNER_DIMS = ("unit", "input", "row", "column")
"""Dimensions of a layer's parameters."""
CHAINS = 4
"""Blocks of independent draws."""
KEPT_NUMBERS = 1000
"""Numbers of a variable that are kept of each draw."""
PER_VARIABLE = 4096
"""Bytes at most that HDF5 writes about a variable, or a group, beside its numbers."""
INDEPENDENT = f"independent draws; the {CHAINS} chains are blocks of them"
MARKOV = "Markov chains"
POINT = "a point, repeated in every draw"
PARTICLES = "equally probable points, each once, in one chain"
NOTHING_LATENT = "no variable is latent: there is no posterior, and draws are of labels alone"
LOO = {
    "exact": "draws of p(w given the observed data): arviz.loo estimates leave-one-out (read its Pareto k)",
    "variational": "draws of a variational posterior: at β = 1 against a prior it approximates p(w given the observed data), "
    "and arviz.loo weighs its draws as if they were exact (read its Pareto k); otherwise that is not leave-one-out",
    "tempered": "draws of a posterior at β ≠ 1, about p(w) p(y given w)^(1/β): arviz.loo weighs them by 1/p(y_i given w) as if "
    "β were 1, so it is not leave-one-out",
    "amortized": "draws of a distribution that a trained guide gave: arviz.loo weighs them as if they were of p(w given the "
    "observed data), so it is not leave-one-out, which would call the guide again without an item",
    "point": "a point, which no weights can move: arviz.loo is the fit to the observed data, not leave-one-out",
}
"""What ``arviz.loo`` is of draws of a kind."""


@dataclass(frozen=True)
class Group:
    """One group of ``InferenceData``.

    Attributes:
        values: variable -> tensor: ``[draws, *dims]`` in the groups of :data:`SAMPLED`, ``[*dims]`` in the others.
        dims: variable -> names of its dimensions behind the draws.
        coords: dimension -> names along it; 0, 1, … where none are given.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    dims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def whole_chains(num_samples: int, parts: int = 1, chains: int = CHAINS) -> int:
    """``num_samples`` rounded up, so that every chain has equally many draws of each of ``parts`` components, and no fewer
    draws than there are chains."""
    block = chains * parts
    return block * math.ceil(max(num_samples, chains**2) / block)


def to_inference_data(
    groups: Mapping[str, Group],
    *,
    chains: int = CHAINS,
    in_turn: bool = False,
    attributes: Mapping[str, Any] | None = None,
):
    """Draws and data by group, with the meaning that ArviZ gives its groups (see :mod:`inference.evaluation.arviz`).

    Args:
        groups: by ArviZ's names. Groups without variables are left out.
        chains: into how many the draws are divided.
        in_turn: whether draws are of all chains in turn, instead of one chain's behind the other's.
        attributes: of the whole, such as command, method, β and seed; ``None`` is left out.

    Raises:
        ValueError: draws that do not divide into chains.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at import
        import arviz

    def dataset(name: str, group: Group) -> Any:
        sampled = name in SAMPLED
        values = {key: single(as_chains(value, chains, in_turn)) if sampled else value for key, value in group.values.items()}
        return arviz.dict_to_dataset(
            {key: value.detach().cpu().numpy() for key, value in values.items()},
            dims={key: list(names) for key, names in group.dims.items()},
            coords={key: list(names) for key, names in group.coords.items()},
            default_dims=None if sampled else [],
        )

    data = arviz.InferenceData(**{name: dataset(name, group) for name, group in groups.items() if group.values})
    known = {"version": __version__, **(attributes or {})}
    data.attrs.update({name: value for name, value in known.items() if value is not None})
    return data


def single(draws: Tensor) -> Tensor:
    """Floating-point draws in single precision, which is more than their number says."""
    return draws.float() if draws.is_floating_point() else draws


def as_chains(draws: Tensor, chains: int, in_turn: bool) -> Tensor:
    """``[draws, ...]`` to ``[chains, draws / chains, ...]``; ``in_turn`` where neighbours are of different chains.

    Raises:
        ValueError: so many draws do not make so many chains.
    """
    if len(draws) % chains:
        raise ValueError(f"{len(draws)} draws do not make {chains} chains of equal length")
    return draws.unflatten(0, (-1, chains)).transpose(0, 1) if in_turn else draws.unflatten(0, (chains, -1))


def thinned(
    values: Mapping[str, Tensor], dims: Mapping[str, Sequence[str]], *, whole: Collection[str] = (), kept: int = KEPT_NUMBERS
) -> tuple[Group, str]:
    """A group of draws of which large variables are thinned, and the attribute ``thinned``, which says how.

    A variable of more than ``kept`` numbers has its longest dimensions cut to one length, the greatest at which no more than
    ``kept`` numbers are left, and indices spread evenly over them, first and last included. Variables that share a dimension
    keep the same indices of it, those of the largest variable. Coordinates are the original indices.

    Args:
        values: variable -> ``[draws, *dims]``.
        dims: variable -> names of its dimensions behind the draws.
        whole: dimensions that are not cut, and do not count.
        kept: numbers of each draw.
    """
    chosen: dict[str, Tensor] = {}
    parts, notes = {}, []
    for name in sorted(values, key=lambda name: -values[name][0].numel()):
        sizes = dict(zip(dims[name], values[name].shape[1:], strict=True))
        cut = cut_lengths({dim: size for dim, size in sizes.items() if dim not in whole}, kept)
        for dim, size in sizes.items():
            chosen.setdefault(dim, spread_evenly(size, cut.get(dim, size)))
        part = values[name]
        for axis, dim in enumerate(dims[name], start=1):
            part = part.index_select(axis, chosen[dim].to(part.device))
        parts[name] = part
        if part.shape != values[name].shape:
            few, many = ("×".join(map(str, shape[1:])) for shape in (part.shape, values[name].shape))
            notes.append(f"{name}: {few} of {many}")
    group = Group({name: parts[name] for name in values}, dims, {dim: index.tolist() for dim, index in chosen.items()})
    return group, f"{'; '.join(notes)}; evenly spaced, coordinates are the original indices" if notes else "none"


def cut_lengths(sizes: Mapping[str, int], kept: int) -> dict[str, int]:
    """The length of each dimension, of ``sizes``, the longest cut to the greatest at which their product is at most
    ``kept``."""
    longest = max(sizes.values(), default=1)
    while longest > 1 and math.prod(min(size, longest) for size in sizes.values()) > kept:
        longest -= 1
    return {dim: min(size, longest) for dim, size in sizes.items()}


def spread_evenly(numbers: int, kept: int) -> Tensor:
    """``kept`` different indices from 0 to ``numbers − 1``, both included, as evenly spaced as whole numbers can be."""
    return torch.linspace(0, numbers - 1, kept, dtype=torch.float64).round().long()


def parameter_dims(shapes: Mapping[str, torch.Size]) -> dict[str, list[str]]:
    """Parameter -> names of its dimensions; those of one layer share them where they are of one length."""
    dims: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        layer = name.rpartition(".")[0]
        names = [f"{layer}.{inner}" if layer else inner for inner in INNER_DIMS[: len(shape)]]
        pairs = list(zip(names, shape, strict=False))
        if len(shape) > len(names) or any(lengths.get(dim, size) != size for dim, size in pairs):
            names = [f"{name}_dim_{i}" for i in range(len(shape))]
            pairs = list(zip(names, shape, strict=True))
        lengths.update(pairs)
        dims[name] = names
    return dims


def item_dims(x: Tensor) -> list[str]:
    """Names of the dimensions of inputs ``[n, *item]``."""
    return ["item", *(f"x_dim_{i}" for i in range(x.dim() - 1))]


def choose_observed(items: int, kept: int, seed: int) -> Tensor:
    """Which of the training items are written as observed data: all, or a seeded choice of ``kept``, in their order."""
    return torch.randperm(items, generator=torch.Generator().manual_seed(seed))[:kept].sort().values


def save_posteriors(made: Mapping[str, Callable[[], Any]], chosen: str, run: RunFolder) -> None:
    """``posteriors/<name>.nc``: ``InferenceData`` of everything that a run has fitted; ``posterior.nc`` is the chosen one's.

    Args:
        made: name -> what makes it, called one after the other.
        chosen: a name.
    """
    for name, make in made.items():
        written = write_netcdf(make(), run.posteriors / f"{name}.nc")
        if name == chosen:
            write_atomically(run.posterior, partial(shutil.copyfile, written))


def write_netcdf(content: Any, path: Path) -> Path:
    """``content``, an ``InferenceData``, as a file, atomically."""

    def write(file: Path) -> None:
        reserve(file, most_bytes(content))  # HDF5 ends the process where the disk is full
        content.to_netcdf(str(file))

    return write_atomically(path, write)


def most_bytes(content: Any) -> int:
    """How large the file of ``content`` is at most: its numbers and texts, and what HDF5 keeps of each of them."""
    variables = [variable for group in content.groups() for variable in content[group].variables.values()]
    texts = sum(len(str(text)) for variable in variables if variable.dtype == object for text in variable.values.flat)
    return sum(variable.nbytes for variable in variables) + 4 * texts + PER_VARIABLE * (len(variables) + 8)
