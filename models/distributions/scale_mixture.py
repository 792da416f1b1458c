"""A mixture of centred Gaussians over one number."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl


class ScaleMixture(TorchDistribution):
    """Σ_j π_j N(0, scale_j²) over one number.

    Args:
        logits: ``[components]``, unnormalised log π.
        scales: ``[components]``.
        kl: KL from a Gaussian by ``"bound"`` (never below the KL) or ``"monte_carlo"`` (unbiased, one draw).

    Raises:
        ValueError: another ``kl``.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector, "scales": constraints.positive}
    support = constraints.real

    def __init__(
        self, logits: Tensor, scales: Tensor, *, kl: str = "bound", batch_shape: tuple[int, ...] = (), validate_args=None
    ) -> None:
        if kl not in ("bound", "monte_carlo"):
            raise ValueError(f"kl = {kl!r}: choose 'bound' or 'monte_carlo'")
        self.logits, self.scales, self.kl = logits, scales, kl
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> ScaleMixture:
        return ScaleMixture(self.logits, self.scales, kl=self.kl, batch_shape=tuple(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.scales.new_zeros(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        return (self.logits.softmax(-1) @ self.scales.square()).expand(self.batch_shape)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            component = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape) + self.batch_shape)
            return self.scales[component] * torch.randn_like(component, dtype=self.scales.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise, nats."""
        components = dist.Normal(torch.zeros_like(self.scales), self.scales).log_prob(value[..., None])
        return (self.logits.log_softmax(-1) + components).logsumexp(-1)


@register_kl(torch.distributions.Normal, ScaleMixture)
def _kl_normal_scale_mixture(q: torch.distributions.Normal, p: ScaleMixture) -> Tensor:
    """Bound: −log Σ_j π_j exp(−KL(q ‖ p_j)), Hershey and Olsen 2007, section 7. Monte Carlo: E_q log q is exact."""
    if p.kl == "monte_carlo":
        return -q.entropy() - p.log_prob(q.rsample())
    ratio = (q.scale[..., None] / p.scales).square()
    components = 0.5 * (ratio + (q.loc[..., None] / p.scales).square() - 1 - ratio.log())
    return -(p.logits.log_softmax(-1) - components).logsumexp(-1)
