"""A posterior over all weights of a network: draws, predictions, scores, rate, ArviZ ``InferenceData``."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from data.items import LabelledItems
from data.seeding import seeded
from inference.bnn.export import weights_to_arviz
from inference.evaluation.metrics import predictive_scores
from models.bayesian.network import BayesianNetwork
from models.distributions.diagonal import DiagonalGaussian
from models.distributions.low_rank import low_rank_gaussian
from models.likelihoods import Likelihood

DRAWS_AT_ONCE, ITEMS_AT_ONCE, NUMBERS_AT_ONCE = 10, 1000, 1_000_000
RATE_DRAWS, RATE_DRAWS_AT_ONCE = 500, 10
NOISE = torch.float32
"""Noise of draws is in this type, whatever the posterior is in: the same draws on every device and in every type."""


class NetworkPosterior(abc.ABC):
    """A posterior over a network's weights, or an approximation of one: what scores, plots, records and exports ask of it.

    A kind of posterior says how to draw weights; where predictions are not those of the network under these weights (a
    linearised network), it says how to draw outputs too. Everything else follows.

    Attributes:
        model: network, prior and likelihood.
    """

    model: BayesianNetwork

    @abc.abstractmethod
    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Weight vectors ``[num_samples, P]``; equal seeds give equal draws on every device and in every type."""

    def to(self, *place: Any) -> Self:
        """A copy on another device, in another floating-point type, or both, as ``torch.Tensor.to`` takes them; this one
        stays as it is."""
        assert is_dataclass(self)
        return replace(self, **{part.name: moved(getattr(self, part.name), *place) for part in fields(self)})

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """K, how many fits (components, networks, chains) it is made of; draws are of all in turn."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where its numbers are."""

    @property
    def is_markov(self) -> bool:
        """Whether the draws of each of the K are a Markov chain, in its order."""
        return False

    def draws(self, num_samples: int) -> int:
        """How many draws ``num_samples`` asks for: fewer where there are no more different ones."""
        return num_samples

    def log_scales(self) -> Tensor | None:
        """Log of the weights' standard deviations, ``[K, P]``; ``None`` where the weights have none."""
        return None

    def rate(self) -> Tensor:
        """KL(q_k ‖ m) of each of the K, nats: ``[K]``; NaN where it has no closed form, or the weights are points."""
        return torch.full((self.size,), torch.nan)

    def evidence(self) -> float | None:
        """log p(y given x), nats, of all training items, where the method estimates it."""
        return None

    def components(self, num_samples: int) -> Tensor:
        """Which of the K each draw is of, ``[num_samples]``: all in turn."""
        return torch.arange(num_samples, device=self.device) % self.size

    def likelihood(self, components: Tensor) -> Likelihood:
        """p(y given ŷ) for outputs ``[len(components), n, outputs]`` of draws from these components."""
        return self.model.likelihood.rows(components)

    @torch.no_grad()
    def observation(self, outputs: Tensor) -> dist.TorchDistribution:
        """p(y given x, w_s) of outputs ``[draws, n, outputs]`` that :meth:`outputs` gave: batch_shape ``[draws, n]``."""
        return self.likelihood(self.components(len(outputs)))(outputs)

    @torch.no_grad()
    def outputs(self, x: Tensor, *, num_samples: int = 40, seed: int = 0) -> Tensor:
        """Network outputs under weight draws: ``[draws, n, outputs]``; fewer where :meth:`draws` says so."""
        return self.outputs_of(x, self.sample(self.draws(num_samples), seed=seed))

    @torch.no_grad()
    def outputs_of(self, x: Tensor, weights: Tensor) -> Tensor:
        """Network outputs under weight vectors ``[draws, P]``: ``[draws, n, outputs]``."""
        was_training, parts = self.model.training, []
        self.model.eval()
        for some, components in zip(*(t.split(DRAWS_AT_ONCE) for t in (weights, self.components(len(weights)))), strict=True):
            batches = [self.functions(placed(part, some), some, components) for part in x.split(items_at_once(x))]
            parts.append(torch.cat(batches, dim=1))
        self.model.train(was_training)
        return torch.cat(parts)

    def functions(self, x: Tensor, weights: Tensor, components: Tensor) -> Tensor:
        """The function that each of the ``[S, P]`` weights stands for, at ``x``: ``[S, n, outputs]``.

        Args:
            components: which of the K each is of, ``[S]``.
        """
        return self.model.map_weights(x, weights)

    def probabilities(self, x: Tensor, *, num_samples: int = 40) -> Tensor:
        """Posterior predictive class probabilities ``[n, classes]``."""
        return self.observation(self.outputs(x, num_samples=num_samples)).probs.mean(0)

    def entropy(self, x: Tensor, *, num_samples: int = 40) -> Tensor:
        """Entropy of the predictive distribution over classes, nats: ``[n]``."""
        return torch.special.entr(self.probabilities(x, num_samples=num_samples)).sum(-1)

    @torch.no_grad()
    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log p(y_i given x_i, w_s), nats: outputs ``[draws, n, outputs]`` of :meth:`outputs` and y ``[n]`` or
        ``[n, d]`` to ``[draws, n]``."""
        return self.observation(outputs).log_prob(self.model.likelihood.cast(y.to(outputs.device), outputs))

    @torch.no_grad()
    def log_predictive(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log E_q p(y given x, w), nats: ``[draws, n, outputs]`` and ``[n]`` to ``[n]``."""
        return self.log_density(outputs, y).logsumexp(0) - math.log(len(outputs))

    @torch.no_grad()
    def scores(self, data: LabelledItems, *, num_samples: int = 40) -> dict[str, float]:
        """``nll`` (nats per item), ``distortion`` (−E_q log p summed over the items, nats) and, for classes, ``accuracy``,
        ``ece``, ``brier`` and ``gibbs_accuracy``; for other targets ``rmse``, in their unit, over all outputs.

        Gibbs accuracy is that of a single draw of the weights, averaged over draws: what a bound by I(w; S) speaks of. The
        others are of the posterior predictive, which averages probabilities over draws first.
        """
        outputs = self.outputs(data.items, num_samples=num_samples)
        labels = data.labels.to(outputs.device)
        scores = {
            "nll": float(-self.log_predictive(outputs, labels).mean()),
            "distortion": float(-self.log_density(outputs, labels).mean(0).sum()),
        }
        observation = self.observation(outputs)
        if isinstance(observation, Categorical):
            gibbs = float((observation.probs.argmax(-1) == labels).to(torch.float64).mean())
            return scores | predictive_scores(observation.probs.mean(0), labels) | {"gibbs_accuracy": gibbs}
        return scores | {"rmse": float((observation.mean.mean(0) - labels).square().mean().sqrt())}

    def to_arviz(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        train: LabelledItems | None = None,
        num_samples: int = 200,
        parameters: Sequence[str] | None = None,
        seed: int = 0,
        attributes: Mapping[str, Any] | None = None,
    ):
        """ArviZ ``InferenceData``; :mod:`inference.evaluation.arviz` says what each group means, and
        :mod:`inference.bnn.export` how weights are named. What is observed are training items.

        Args:
            x, y: held-out inputs ``[n, *item]`` and, where they are known, targets ``[n]`` or ``[n, d]``.
            train: training items; a seeded choice of 1000 where there are more.
            num_samples: draws, rounded up to equally many of each of the K in every chain; points are repeated.
            parameters: names of the parameters to keep, whole; when not given, all are kept, large ones thinned.
            seed: of draws and choices.
            attributes: of the whole, such as command, method and data set.
        """
        return weights_to_arviz(
            self, x, y, train=train, num_samples=num_samples, parameters=parameters, seed=seed, attributes=attributes
        )


@dataclass(frozen=True)
class TrainedPosterior(NetworkPosterior):
    """A posterior around K trained weight vectors.

    Attributes:
        model: network, prior and likelihood.
        loc: their means, ``[K, P]``.
        own_likelihood: with learned numbers for each of the K; ``None`` where that is the model's.
    """

    model: BayesianNetwork
    loc: Tensor
    own_likelihood: Likelihood | None = field(default=None, kw_only=True)

    @property
    def size(self) -> int:
        return len(self.loc)

    @property
    def device(self) -> torch.device:
        return self.loc.device

    def likelihood(self, components: Tensor) -> Likelihood:
        every = self.model.likelihood if self.own_likelihood is None else self.own_likelihood
        return every.rows(components)


@dataclass(frozen=True)
class WeightPosterior(TrainedPosterior):
    """q(w) = 1/K Σ_k N(loc_k, diag exp(log_scale_k)² + F_k F_kᵀ), with the model that gives predictions their meaning.

    Attributes:
        log_scale: ``[K, P]``, or ``None`` for points.
        factor: F, ``[K, P, R]``; ``None`` where weights are independent.
    """

    log_scale: Tensor | None
    factor: Tensor | None = None

    def log_scales(self) -> Tensor | None:
        if self.log_scale is None or self.factor is None:
            return self.log_scale
        return 0.5 * ((2 * self.log_scale).exp() + self.factor.square().sum(-1)).log()

    @torch.no_grad()
    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Weight vectors ``[num_samples, P]``, from the K components in turn; points are repeated."""
        component = self.components(num_samples)
        if self.log_scale is None:
            return self.loc[component]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(num_samples, self.loc.shape[-1], generator=generator, dtype=NOISE).to(self.loc)
        drawn = self.loc[component] + noise * self.log_scale[component].exp()
        if self.factor is None:
            return drawn
        shared = torch.randn(num_samples, self.factor.shape[-1], 1, generator=generator, dtype=NOISE).to(self.loc)
        return drawn + (self.factor[component] @ shared)[..., 0]

    def draws(self, num_samples: int) -> int:
        """How many draws ``num_samples`` asks for: fewer where :meth:`draws` says so."""
        return num_samples if self.log_scale is not None else len(self.loc)

    @torch.no_grad()
    def rate(self) -> Tensor:
        """KL(q_k ‖ m) of each component, nats: ``[K]``; NaN for points. Where no KL is registered for the prior, a mean over
        500 seeded draws of log q − log m."""
        if self.log_scale is None:
            return self.loc.new_full(self.loc.shape[:1], torch.nan)
        loc, log_scale = self.loc[:, None], self.log_scale[:, None]  # [K, 1, P], as in the model's plates
        q: dist.TorchDistribution = DiagonalGaussian(loc, log_scale)
        if self.factor is not None:
            q = low_rank_gaussian(loc, log_scale, self.factor[:, None])
        prior = self.model.prior(loc.shape[-1])
        try:
            return kl_divergence(q, prior).squeeze(-1)
        except NotImplementedError:
            return sampled_kl(q, prior).squeeze(-1)


def sampled_kl(q: dist.TorchDistribution, prior: dist.TorchDistribution) -> Tensor:
    """E_q[log q − log m] by seeded draws, nats: ``q.batch_shape``."""
    with seeded(0, device=q.mean.device):
        parts = []
        for _ in range(RATE_DRAWS // RATE_DRAWS_AT_ONCE):
            drawn = q.rsample((RATE_DRAWS_AT_ONCE,))
            parts.append((q.log_prob(drawn) - prior.log_prob(drawn)).mean(0))
    return torch.stack(parts).mean(0)


def items_at_once(x: Tensor) -> int:
    """How many items pass through the network together: a thousand, fewer where they are large images."""
    return max(1, min(ITEMS_AT_ONCE, NUMBERS_AT_ONCE // max(1, math.prod(x.shape[1:]))))


def placed(x: Tensor, like: Tensor) -> Tensor:
    """On the device of ``like``, and in its type where the numbers are floating."""
    return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)


def moved(value: Any, *place: Any) -> Any:
    """A copy of a tensor, a module, or a sequence of them elsewhere; anything else as it is."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(*place)
    if isinstance(value, Tensor):
        return value.to(*place)
    return type(value)(moved(part, *place) for part in value) if isinstance(value, list | tuple) else value
