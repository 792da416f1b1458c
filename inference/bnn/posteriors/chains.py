"""Hamiltonian Monte Carlo over a small network's weights: the reference that approximations are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.distributions import validation_enabled
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from data.items import LabelledItems
from data.seeding import seeded
from inference.bnn.posterior import NetworkPosterior
from models.bayesian.network import BayesianNetwork

MOST_WEIGHTS = 500  # two minutes for 31; beyond some hundreds chains do not mix in hours
MOST_DOUBLINGS = 9  # of a trajectory: 511 steps, which is what it takes to cross the posterior of a small network
SEARCH = 1000  # steps to the modes
ACCEPTED = 0.7  # of the sixteen or so chains together


@dataclass(frozen=True)
class ChainPosterior(NetworkPosterior):
    """Draws of p(w given the data) itself, by Markov chains.

    Attributes:
        model: network, prior and likelihood.
        chains: ``[C, draws, P]``, in the order they were drawn.
    """

    model: BayesianNetwork
    chains: Tensor
    is_markov = True

    @property
    def size(self) -> int:
        return len(self.chains)

    @property
    def device(self) -> torch.device:
        return self.chains.device

    def draws(self, num_samples: int) -> int:
        return min(num_samples, self.chains.shape[0] * self.chains.shape[1])

    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Draws of all chains in turn, evenly spaced along each; ``seed`` chooses nothing."""
        each = -(-num_samples // self.size)
        index = torch.linspace(0, self.chains.shape[1] - 1, each, dtype=torch.float64, device=self.device).round().long()
        return self.chains[:, index].transpose(0, 1).flatten(0, 1)[:num_samples]

    def log_scales(self) -> Tensor:
        """Of each chain's own draws."""
        return self.chains.std(1).log()

    def part(self, first: int, last: int) -> ChainPosterior:
        """Chains ``first`` to ``last`` − 1 alone: two parts show the error of both."""
        return ChainPosterior(self.model, self.chains[first:last])

    @torch.no_grad()
    def r_hat(self, x: Tensor) -> Tensor:
        """Split r-hat of each of the network's outputs at ``x``: ``[n, outputs]``.

        Of outputs, because the weights' own is of no use: hidden units may swap places, and a tanh unit change its sign,
        without any change of the function.

        Source: Gelman et al. 2013, section 11.4.
        """
        outputs = [self.part(c, c + 1).outputs(x, num_samples=self.chains.shape[1]) for c in range(self.size)]
        return split_gelman_rubin(torch.stack(outputs))


def sample_chains(
    model: BayesianNetwork, data: LabelledItems, start: Tensor, *, draws: int, warmup: int, seed: int, progress: bool = False
) -> ChainPosterior:
    """Pyro's NUTS on as many independent copies of the posterior as there are rows in ``start``, side by side.

    Each row is a chain: under the product of C posteriors the rows are independent. They share step size, trajectory and
    acceptance, and thereby the cost of the network: sixteen chains take little longer than one. Each begins at the mode that
    Adam finds from its row. Mass is in units of the prior's scales: what a chain learns of one mode misleads it in the next.

    Args:
        model: of one posterior, all of whose weights are random, with nothing to be learned in prior or likelihood.
        data: all are looked at in each step.
        start: ``[C, P]``.
        draws, warmup: of each chain.
        seed: of everything random.

    Source: Hoffman and Gelman 2014, algorithm 6.
    """
    x, y = data.items.to(start), model.likelihood.cast(data.labels.to(start.device), start)
    prior = model.eval().prior(model.num_weights)
    variance = prior.variance  # infinite, or none, where tails are heavy
    unit = torch.where(variance.isfinite() & (variance > 0), variance, torch.ones_like(variance)).sqrt()

    def potential(sites: dict[str, Tensor]) -> Tensor:
        weights = sites["standard weights"] * unit
        log_likelihood = model.likelihood(model.map_weights(x, weights)).log_prob(y)
        return -(prior.log_prob(weights).sum() + log_likelihood.sum())

    with seeded(seed, device=start.device), validation_enabled(False):  # checks cost as much as the network
        initial = {"standard weights": find_modes(potential, start / unit)}
        options = {"adapt_mass_matrix": False, "target_accept_prob": ACCEPTED, "max_tree_depth": MOST_DOUBLINGS}
        kernel = NUTS(potential_fn=potential, **options)
        sampler = MCMC(kernel, draws, warmup, initial_params=initial, disable_progbar=not progress)
        sampler.run()
    return ChainPosterior(model, (sampler.get_samples()["standard weights"] * unit).transpose(0, 1).contiguous())


def find_modes(potential: Callable[[dict[str, Tensor]], Tensor], start: Tensor) -> Tensor:
    """Where Adam ends from each row of ``start`` ``[C, P]``: near modes, so that the warm-up need not search for them."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SEARCH)
    for _ in range(SEARCH):
        optimizer.zero_grad()
        potential({"standard weights": weights}).backward()
        optimizer.step()
        schedule.step()
    return weights.detach()
