"""Hamiltonian Monte Carlo over a small network's weights: the reference that approximations are compared with."""

from __future__ import annotations

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

MOST_WEIGHTS = 500  # a thousand steps of 16 weights take a minute; beyond some hundreds chains do not mix in hours
MOST_DOUBLINGS = 6  # of a trajectory: 63 steps; more are of little use once the mass matrix is known, and dear before


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

    def chain(self, number: int) -> ChainPosterior:
        """One chain alone: two of them show the error of both."""
        return ChainPosterior(self.model, self.chains[number : number + 1])

    @torch.no_grad()
    def r_hat(self, x: Tensor) -> Tensor:
        """Split r-hat of each of the network's outputs at ``x``: ``[n, outputs]``.

        Of outputs, because the weights' own is of no use: hidden units may swap places, and a tanh unit change its sign,
        without any change of the function.

        Source: Gelman et al. 2013, section 11.4.
        """
        outputs = [self.chain(c).outputs(x, num_samples=self.chains.shape[1]) for c in range(self.size)]
        return split_gelman_rubin(torch.stack(outputs))


def sample_chains(
    model: BayesianNetwork, data: LabelledItems, start: Tensor, *, draws: int, warmup: int, seed: int, progress: bool = False
) -> ChainPosterior:
    """Pyro's NUTS, one chain from each row of ``start``.

    Args:
        model: of one posterior, all of whose weights are random, with nothing to be learned in prior or likelihood.
        data: all are looked at in each step.
        start: ``[C, P]``.
        draws, warmup: of each chain.
        seed: chain c has its own random numbers.

    Source: Hoffman and Gelman 2014, algorithm 6.
    """
    x, y = data.items.to(start), model.likelihood.cast(data.labels.to(start.device), start)

    def potential(sites: dict[str, Tensor]) -> Tensor:
        weights = sites["weights"]
        outputs = model.call(weights, x)[None]
        return -(model.prior(model.num_weights).log_prob(weights) + model.likelihood(outputs).log_prob(y).sum())

    model.eval()
    chains = []
    for number, initial in enumerate(start):
        kernel = NUTS(potential_fn=potential, full_mass=True, max_tree_depth=MOST_DOUBLINGS)
        sampler = MCMC(kernel, draws, warmup, initial_params={"weights": initial.clone()}, disable_progbar=not progress)
        with seeded(seed, number, device=start.device), validation_enabled(False):  # checks cost as much as the network
            sampler.run()
        chains.append(sampler.get_samples()["weights"])
    return ChainPosterior(model, torch.stack(chains))
