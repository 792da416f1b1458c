"""Low-rank plus diagonal Gaussians over a long weight vector: Pyro's distribution, and its KL without a full covariance."""

from __future__ import annotations

from pyro.distributions import LowRankMultivariateNormal
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence, register_kl

from models.distributions.diagonal import DiagonalGaussian
from models.distributions.scaled import Scaled


def low_rank_gaussian(loc: Tensor, log_scale: Tensor, factor: Tensor) -> LowRankMultivariateNormal:
    """N(loc, F Fᵀ + diag exp(log_scale)²) of ``[..., P]``, ``[..., P]`` and F ``[..., P, R]``."""
    return LowRankMultivariateNormal(loc, factor, (2 * log_scale).exp(), validate_args=False)


def correlation_information(q: LowRankMultivariateNormal) -> Tensor:
    """KL from q to the product of its marginals, ½ (Σ_i log Σ_ii − log |Σ|), nats: ``batch_shape``.

    log |D + F Fᵀ| = log |D| + log |I + Fᵀ D⁻¹ F|, the matrix determinant lemma.
    """
    within = q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (q.variance.log() - q._unbroadcasted_cov_diag.log()).sum(-1) - within


def kl_by_marginals(q: LowRankMultivariateNormal, p: Distribution) -> Tensor:
    """The KL of q's marginals, and what the weights know of each other, nats: ``batch_shape``.

    Exact where p factorises over the weights, for log p then depends on the marginals alone; scales of a prior do not change
    that.
    """
    return kl_divergence(DiagonalGaussian(q.loc, 0.5 * q.variance.log()), p) + correlation_information(q)


@register_kl(LowRankMultivariateNormal, Independent)
def _kl_low_rank_independent(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    if p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"KL({q} || {p}): only distributions over vectors, to_event(1), are supported")
    return kl_by_marginals(q, p)


@register_kl(LowRankMultivariateNormal, Scaled)
def _kl_low_rank_scaled(q: LowRankMultivariateNormal, p: Scaled) -> Tensor:
    return kl_by_marginals(q, p)
