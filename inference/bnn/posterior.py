"""A posterior over all weights of a network: draws, predictions, scores, rate, ArviZ ``InferenceData``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from data.items import LabelledItems
from inference.evaluation.metrics import predictive_scores
from models.bayesian.network import BayesianNetwork
from models.distributions.diagonal import DiagonalGaussian
from models.likelihoods import CategoricalLikelihood

DRAWS_AT_ONCE, ITEMS_AT_ONCE = 10, 1000


@dataclass(frozen=True)
class WeightPosterior:
    """q(w) = 1/K Σ_k N(loc_k, diag exp(log_scale_k)²), with the model that gives predictions their meaning.

    Attributes:
        model: network, prior and likelihood.
        loc: ``[K, P]``.
        log_scale: ``[K, P]``, or ``None`` for points.
    """

    model: BayesianNetwork
    loc: Tensor
    log_scale: Tensor | None

    @torch.no_grad()
    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Weight vectors ``[num_samples, P]``, from the K components in turn; points are repeated."""
        component = torch.arange(num_samples, device=self.loc.device) % len(self.loc)
        if self.log_scale is None:
            return self.loc[component]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(num_samples, self.loc.shape[-1], generator=generator).to(self.loc)
        return self.loc[component] + noise * self.log_scale[component].exp()

    @torch.no_grad()
    def outputs(self, x: Tensor, *, num_samples: int = 40, seed: int = 0) -> Tensor:
        """Network outputs under weight draws: ``[draws, n, outputs]``; K draws at most where the posterior is points."""
        draws = num_samples if self.log_scale is not None else len(self.loc)
        was_training = self.model.training
        self.model.eval()
        parts = []
        for weights in self.sample(draws, seed=seed).split(DRAWS_AT_ONCE):
            x = x.to(weights.dtype) if x.is_floating_point() else x
            batches = [self.model.map_weights(part.to(weights.device), weights) for part in x.split(ITEMS_AT_ONCE)]
            parts.append(torch.cat(batches, dim=1))
        self.model.train(was_training)
        return torch.cat(parts)

    def probabilities(self, x: Tensor, *, num_samples: int = 40) -> Tensor:
        """Posterior predictive class probabilities ``[n, classes]``."""
        return self.outputs(x, num_samples=num_samples).softmax(-1).mean(0)

    def entropy(self, x: Tensor, *, num_samples: int = 40) -> Tensor:
        """Entropy of the predictive distribution over classes, nats: ``[n]``."""
        return torch.special.entr(self.probabilities(x, num_samples=num_samples)).sum(-1)

    @torch.no_grad()
    def log_predictive(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log E_q p(y given x, w), nats: ``[draws, n, outputs]`` and ``[n]`` to ``[n]``."""
        return self.model.likelihood(outputs).log_prob(y.to(outputs.device)).logsumexp(0) - math.log(len(outputs))

    @torch.no_grad()
    def scores(self, data: LabelledItems, *, num_samples: int = 40) -> dict[str, float]:
        """``nll`` (nats an item), ``distortion`` (−E_q log p summed over the items, nats) and, for classes, ``accuracy``,
        ``ece`` and ``brier``; for other targets ``rmse``, in their unit."""
        outputs = self.outputs(data.items, num_samples=num_samples)
        labels = data.labels.to(outputs.device)
        likelihood = self.model.likelihood(outputs)
        scores = {
            "nll": float(-self.log_predictive(outputs, labels).mean()),
            "distortion": float(-likelihood.log_prob(labels).mean(0).sum()),
        }
        if isinstance(self.model.likelihood, CategoricalLikelihood):
            return scores | predictive_scores(outputs.softmax(-1).mean(0), labels)
        return scores | {"rmse": float((likelihood.mean.mean(0) - labels).square().mean().sqrt())}

    @torch.no_grad()
    def rate(self) -> Tensor:
        """KL(q_k ‖ m) of each component, nats: ``[K]``; NaN for points."""
        if self.log_scale is None:
            return self.loc.new_full(self.loc.shape[:1], torch.nan)
        return kl_divergence(DiagonalGaussian(self.loc, self.log_scale), self.model.prior(self.loc.shape[-1]))

    @torch.no_grad()
    def to_arviz(self, x: Tensor, y: Tensor | None = None, *, num_samples: int = 200, parameters: Sequence[str] | None = None):
        """ArviZ ``InferenceData``: ``posterior`` (weights by parameter name), ``posterior_predictive`` (class probabilities, or
        the mean of the target), ``constant_data`` and, with targets, ``log_likelihood`` and ``observed_data``.

        Args:
            x, y: inputs ``[n, *item]`` and targets ``[n]``.
            num_samples: draws.
            parameters: names of the parameters to keep; those with at most 1000 numbers when not given.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at import
            import arviz

        weights = self.model.split(self.sample(num_samples))
        kept = [n for n, s in self.model.shapes.items() if (s.numel() <= 1000 if parameters is None else n in parameters)]
        outputs = self.outputs(x, num_samples=num_samples)
        outputs = outputs.expand(num_samples, *outputs.shape[1:]) if len(outputs) == 1 else outputs
        classes = isinstance(self.model.likelihood, CategoricalLikelihood)
        predicted = outputs.softmax(-1) if classes else self.model.likelihood(outputs).mean
        dims = {"x": ["item", *(f"x_dim_{i}" for i in range(x.dim() - 1))], "y": ["item"]}
        dims |= {"prediction": ["item", "class"] if classes else ["item"]}
        groups: dict[str, Any] = {
            "posterior": {name: array(weights[name])[None] for name in kept},
            "posterior_predictive": {"prediction": array(predicted)[None]},
            "constant_data": {"x": array(x)},
        }
        if y is not None:
            groups["observed_data"] = {"y": array(y)}
            groups["log_likelihood"] = {"y": array(self.model.likelihood(outputs).log_prob(y.to(outputs.device)))[None]}
        return arviz.from_dict(**groups, dims=dims)


def array(tensor: Any):
    """A NumPy copy on the CPU."""
    return tensor.detach().cpu().numpy()
