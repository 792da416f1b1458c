"""A mixture of diagonal Gaussians, and the KL divergence from a Gaussian to it."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from models.distributions.diagonal import DiagonalGaussian


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

    Raises:
        ValueError: another ``kl``.

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
        components: Components | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if kl not in ("bound", "monte_carlo"):
            raise ValueError(f"kl = {kl!r}: choose 'bound' or 'monte_carlo'")
        self.logits, self.loc, self.scale, self.kl, self.kl_samples = logits, loc, scale, kl, kl_samples
        self.components = components or Components(loc, scale)
        super().__init__(torch.Size(batch_shape), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> GaussianMixture:
        return GaussianMixture(
            self.logits,
            self.loc,
            self.scale,
            kl=self.kl,
            kl_samples=self.kl_samples,
            batch_shape=tuple(batch_shape),
            components=self.components,
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
        constant = self.components.log_volume + 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -(0.5 * self.components.squared_distance(widen(value)) + constant)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., D] -> [...]``, nats."""
        return self.wide_log_prob(value).to(self.loc.dtype)

    def wide_log_prob(self, value: Tensor) -> Tensor:
        """:meth:`log_prob` in double precision."""
        return (self.logits.log_softmax(-1) + self.component_log_prob(value)).logsumexp(-1)


class Components:
    """The components of a mixture with what their distances need, computed once in double precision.

    Sums over a network's weights cancel to a few nats, so single precision is not enough; and they are products of matrices,
    because an array ``[..., components, D]`` would be large.

    Args:
        loc, scale: ``[..., components, D]``.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale

    @functools.cached_property
    def precision(self) -> Tensor:
        """1/σ²."""
        return widen(self.scale).square().reciprocal()

    @functools.cached_property
    def weighted_loc(self) -> Tensor:
        """μ/σ²."""
        return widen(self.loc) * self.precision

    @functools.cached_property
    def squared_loc(self) -> Tensor:
        """Σ_d μ²/σ²: ``[..., components]``."""
        return (widen(self.loc) * self.weighted_loc).sum(-1)

    @functools.cached_property
    def log_volume(self) -> Tensor:
        """Σ_d log σ: ``[..., components]``."""
        return widen(self.scale).log().sum(-1)

    def squared_distance(self, value: Tensor) -> Tensor:
        """Σ_d (value_d − μ_kd)²/σ_kd²: ``[..., D] -> [..., components]``, ``value`` in double precision."""
        cross = weighted_sum(value.square(), self.precision) - 2 * weighted_sum(value, self.weighted_loc)
        return (cross + self.squared_loc).clamp_min(0)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in double precision, where the device has it."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def weighted_sum(value: Tensor, weights: Tensor) -> Tensor:
    """Σ_d value_d weights_kd: ``[..., D]`` and ``[..., components, D]`` to ``[..., components]``."""
    if weights.dim() == 2:
        return value @ weights.mT
    if weights.shape[-3] == 1 and value.dim() > 1:  # all rows meet the same components: one product, not one per row
        return value @ weights[..., 0, :, :].mT
    return (value[..., None, :] @ weights.mT)[..., 0, :]


def component_kl(loc: Tensor, variance: Tensor, log_scale: Tensor, mixture: GaussianMixture) -> Tensor:
    """KL(N(loc, variance) ‖ N(μ_k, σ_k²)) for every component: ``[..., D] -> [..., components]``, nats."""
    components = mixture.components
    squares = weighted_sum(widen(variance), components.precision) + components.squared_distance(widen(loc))
    logs = components.log_volume - widen(log_scale).sum(-1)[..., None]
    return logs + 0.5 * (squares - loc.shape[-1])


def kl_mixture_bound(q: DiagonalGaussian, mixture: GaussianMixture) -> Tensor:
    """KL(q ‖ Σ_k π_k p_k) ≤ −log Σ_k π_k exp(−KL(q ‖ p_k)): ``[...]``, nats.

    Exact for one component. Source: Hershey and Olsen 2007, section 7 (variational bound, one-component q).
    """
    variance = (2 * q.log_scale).exp()  # not q's own: SIB's inner steps are differentiated again
    distances = component_kl(q.loc, variance, q.log_scale, mixture)
    return -(mixture.logits.log_softmax(-1) - distances).logsumexp(-1).to(q.loc.dtype)


def kl_mixture_monte_carlo(q: DiagonalGaussian, mixture: GaussianMixture, num_samples: int) -> Tensor:
    """Unbiased estimate of KL(q ‖ p) with reparameterised draws: ``[...]``, nats.

    The entropy of q is exact; only E_q log p is sampled.
    """
    noise = torch.randn(num_samples, *q.loc.shape, dtype=q.loc.dtype, device=q.loc.device)
    entropy = widen(q.log_scale).sum(-1) + 0.5 * math.log(2 * math.pi * math.e) * q.loc.shape[-1]
    return (-entropy - mixture.wide_log_prob(q.loc + q.log_scale.exp() * noise).mean(0)).to(q.loc.dtype)


@register_kl(DiagonalGaussian, GaussianMixture)
def _kl_diagonal_mixture(q: DiagonalGaussian, p: GaussianMixture) -> Tensor:
    return kl_mixture_bound(q, p) if p.kl == "bound" else kl_mixture_monte_carlo(q, p, p.kl_samples)


@register_kl(torch.distributions.Independent, GaussianMixture)
def _kl_normal_mixture(q, p: GaussianMixture) -> Tensor:
    """q is a diagonal Gaussian over vectors, ``Normal(...).to_event(1)``."""
    if not isinstance(q.base_dist, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"KL({q} || GaussianMixture): only Normal(...).to_event(1) is supported")
    return _kl_diagonal_mixture(DiagonalGaussian(q.base_dist.loc, q.base_dist.scale.log()), p)


__all__ = ["GaussianMixture", "component_kl", "kl_divergence", "kl_mixture_bound", "kl_mixture_monte_carlo"]
