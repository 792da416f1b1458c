"""NUTS on the same model and data: the reference of an approximate posterior, with its own error."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from data.seeding import seeded
from inference.elbo import local_parameters


@dataclass(frozen=True)
class Chains:
    """Draws of a Markov chain sampler.

    Attributes:
        sites: latent site -> draws ``[chains, draws, *shape]``.
        divergences: diverging transitions behind the warm-up, over all chains.
        seconds: wall-clock time of all chains.
    """

    sites: Mapping[str, Tensor]
    divergences: int
    seconds: float

    def pooled(self, site: str) -> Tensor:
        """The draws of all chains, ``[chains · draws, *shape]``."""
        return self.sites[site].flatten(0, 1)


def run_nuts(
    model: Callable[..., Any],
    *args: Any,
    chains: int = 2,
    draws: int = 500,
    warmup: int = 300,
    seed: int = 0,
    compile_potential: bool = True,
    max_tree_depth: int = 7,
) -> Chains:
    """Pyro's NUTS on a model whose observed sites are given in ``args``.

    A batch of tasks in a plate is one density: one chain has all of them, and each step costs one pass over the batch. Chains
    start at independent draws and run one after another; torch's random state is left as it was.

    Args:
        model: a Pyro program, a module or a function.
        args: its arguments, observations among them, such as a whole ``Episode``.
        chains, draws, warmup: how many, and how long each.
        seed: of everything random.
        compile_potential: compile the log density with ``torch.jit``; a model with ``vmap`` inside cannot be.
        max_tree_depth: 2 to its power bounds the steps of one transition.

    Raises:
        ValueError: fewer than two chains, which have no r-hat.
    """
    if chains < 2:
        raise ValueError(f"chains = {chains}: two or more are needed to tell the sampler's own error")
    start = time.perf_counter()
    found: list[dict[str, Tensor]] = []
    divergences = 0
    for chain in range(chains):
        kernel = NUTS(model, jit_compile=compile_potential, ignore_jit_warnings=True, max_tree_depth=max_tree_depth)
        sampler = MCMC(kernel, draws, warmup, disable_progbar=True)
        with local_parameters(), seeded(seed, chain), warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("ignore")  # torch.jit.trace is announced as deprecated, Pyro has no other compiler
            sampler.run(*args)
        found.append(sampler.get_samples())
        divergences += sum(map(len, sampler.diagnostics()["divergences"].values()))
    sites = {name: torch.stack([one[name] for one in found]).detach() for name in found[0]}
    return Chains(sites, divergences, time.perf_counter() - start)


def r_hat(values: Tensor) -> Tensor:
    """Split r-hat of ``[chains, draws, *shape]``: ``[*shape]``; above 1.01 chains have not mixed. 1 where nothing varies.

    Source: Gelman et al. 2013, "Bayesian Data Analysis", 11.4.
    """
    constant = values.flatten(0, 1).std(0) == 0
    return torch.where(constant, 1.0, split_gelman_rubin(values))


def effective_draws(values: Tensor) -> Tensor:
    """Effective sample size of ``[chains, draws, *shape]``: ``[*shape]``."""
    return effective_sample_size(values)


def monte_carlo_error(estimates: Tensor) -> float:
    """95 % half-width of the mean of an estimate that each chain gives, ``[chains]``: what two runs would differ by.

    With two chains it is itself uncertain by a factor; it says the order of magnitude.
    """
    return float(1.96 * estimates.std() / len(estimates) ** 0.5)


@dataclass(frozen=True)
class Moments:
    """A posterior's moments beside a reference's, over all coordinates.

    Attributes:
        shift: root mean square of (mean − reference mean) / reference standard deviation.
        scale_ratio: geometric mean of standard deviation / reference standard deviation; below 1 it is too narrow.
        coverage90: share of the reference's draws in the central 90 % interval of the posterior, coordinate by coordinate.
    """

    shift: float
    scale_ratio: float
    coverage90: float


def compare_moments(draws: Tensor, reference: Tensor) -> Moments:
    """Moments and coverage of ``draws`` ``[S, *shape]`` against a reference's ``[R, *shape]``."""
    scale = reference.std(0)
    low, high = draws.quantile(0.05, dim=0), draws.quantile(0.95, dim=0)
    inside = ((reference >= low) & (reference <= high)).double()
    return Moments(
        shift=float(((draws.mean(0) - reference.mean(0)) / scale).square().mean().sqrt()),
        scale_ratio=float((draws.std(0) / scale).log().mean().exp()),
        coverage90=float(inside.mean()),
    )
