"""A mixture of diagonal Gaussians, and the KL divergence from a Gaussian to it."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence, register_kl


class GaussianMixture(TorchDistribution):
    """p(w) = Σ_k π_k N(w; μ_k, diag σ_k²) over vectors.

    KL(q ‖ p) from a Gaussian has no closed form. ``kl_divergence`` and :class:`~inference.elbo.RateDistortionELBO` get
    the estimate that ``kl`` names: ``"bound"`` (deterministic, never below the KL, so the ELBO stays a lower bound) or
    ``"monte_carlo"`` (unbiased, noisy).

    Args:
        logits: ``[components]``, unnormalised log π.
        loc: ``[..., components, D]``, means; leading dimensions, if any, broadcast against ``batch_shape``.
        scale: the same shape, standard deviations.
        kl: ``"bound"`` or ``"monte_carlo"``.
        kl_samples: draws of the Monte Carlo estimate.

    ``batch_shape`` is ``[]``, ``event_shape`` is ``[D]``; ``expand`` repeats it over classes and tasks.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector, "loc": constraints.real, "scale": constraints.positive}
    support = constraints.real_vector

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        *,
        kl: str = "bound",
        kl_samples: int = 8,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        if kl not in ("bound", "monte_carlo"):
            raise ValueError(f"kl = {kl!r}: choose 'bound' or 'monte_carlo'")
        self.logits, self.loc, self.scale, self.kl, self.kl_samples = logits, loc, scale, kl, kl_samples
        super().__init__(torch.Size(batch_shape), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> GaussianMixture:
        return GaussianMixture(
            self.logits,
            self.loc,
            self.scale,
            kl=self.kl,
            kl_samples=self.kl_samples,
            batch_shape=tuple(batch_shape),
            validate_args=False,
        )

    @property
    def mean(self) -> Tensor:
        return (self.logits.softmax(-1)[:, None] * self.loc).sum(-2).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        second = (self.logits.softmax(-1)[:, None] * (self.loc.square() + self.scale.square())).sum(-2)
        return (second - self.mean.square()).expand(self.shape())

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            component = (
                dist.Categorical(logits=self.logits).sample(shape)[..., None, None].expand(*shape, 1, self.loc.shape[-1])
            )
            loc, scale = (t.expand(*shape, *self.loc.shape[-2:]).gather(-2, component) for t in (self.loc, self.scale))
            return torch.normal(loc, scale).squeeze(-2)

    def component_log_prob(self, value: Tensor) -> Tensor:
        """log N(w; μ_k, σ_k²): ``[..., D] -> [..., components]``, nats."""
        return dist.Normal(self.loc, self.scale).log_prob(value[..., None, :]).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., D] -> [...]``, nats."""
        return (self.logits.log_softmax(-1) + self.component_log_prob(value)).logsumexp(-1)


def component_kl(loc: Tensor, scale: Tensor, mixture: GaussianMixture) -> Tensor:
    """KL(N(loc, scale²) ‖ N(μ_k, σ_k²)) for every component: ``[..., D] -> [..., components]``, nats."""
    ratio = (scale[..., None, :] / mixture.scale).square()
    shift = ((loc[..., None, :] - mixture.loc) / mixture.scale).square()
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)


def kl_mixture_bound(loc: Tensor, scale: Tensor, mixture: GaussianMixture) -> Tensor:
    """KL(q ‖ Σ_k π_k p_k) ≤ −log Σ_k π_k exp(−KL(q ‖ p_k)): ``[..., D] -> [...]``, nats.

    Exact for one component. Source: Hershey and Olsen 2007, section 7 (variational bound, one-component q).
    """
    return -(mixture.logits.log_softmax(-1) - component_kl(loc, scale, mixture)).logsumexp(-1)


def kl_mixture_monte_carlo(loc: Tensor, scale: Tensor, mixture: GaussianMixture, num_samples: int) -> Tensor:
    """Unbiased estimate of KL(q ‖ p) with reparameterised draws: ``[..., D] -> [...]``, nats.

    The entropy of q is exact; only E_q log p is sampled.
    """
    noise = torch.randn(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
    entropy = (scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
    return -entropy - mixture.log_prob(loc + scale * noise).mean(0)


@register_kl(torch.distributions.Independent, GaussianMixture)
def _kl_normal_mixture(q, p: GaussianMixture) -> Tensor:
    """q is a diagonal Gaussian over vectors, ``Normal(...).to_event(1)``."""
    if not isinstance(q.base_dist, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"KL({q} || GaussianMixture): only Normal(...).to_event(1) is supported")
    if p.kl == "bound":
        return kl_mixture_bound(q.base_dist.loc, q.base_dist.scale, p)
    return kl_mixture_monte_carlo(q.base_dist.loc, q.base_dist.scale, p, p.kl_samples)


__all__ = ["GaussianMixture", "component_kl", "kl_divergence", "kl_mixture_bound", "kl_mixture_monte_carlo"]
