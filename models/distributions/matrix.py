"""A full-covariance Gaussian over a matrix of weights."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import register_kl


class MatrixNormal(dist.TorchDistribution):
    """A multivariate normal over a matrix of weights, ``event_shape`` ``[way, D]``.

    Args:
        loc: ``[..., way, D]``.
        scale_tril: ``[..., way · D, way · D]``.
    """

    arg_constraints = {}  # noqa: RUF012 (Pyro's protocol)
    support = torch.distributions.constraints.independent(torch.distributions.constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        self.flat = torch.distributions.MultivariateNormal(loc.flatten(-2), scale_tril=scale_tril)
        self.shape_of_matrix = loc.shape[-2:]
        super().__init__(self.flat.batch_shape, loc.shape[-2:], validate_args=False)

    def expand(self, batch_shape, _instance=None) -> MatrixNormal:
        new = self._get_checked_instance(MatrixNormal, _instance)
        new.flat = self.flat.expand(batch_shape)  # shares one factor among draws, and does not check it again
        new.shape_of_matrix = self.shape_of_matrix
        super(MatrixNormal, new).__init__(new.flat.batch_shape, self.shape_of_matrix, validate_args=False)
        return new

    @property
    def mean(self) -> Tensor:
        return self.flat.mean.unflatten(-1, self.shape_of_matrix)

    @property
    def variance(self) -> Tensor:
        return self.flat.variance.unflatten(-1, self.shape_of_matrix)

    def rsample(self, sample_shape=()) -> Tensor:
        return self.flat.rsample(sample_shape).unflatten(-1, self.shape_of_matrix)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flat.log_prob(value.flatten(-2))


@register_kl(MatrixNormal, torch.distributions.Independent)
def _kl_matrix_independent(q: MatrixNormal, p: torch.distributions.Independent) -> Tensor:
    """KL from a full-covariance Gaussian to independent Gaussians, closed form."""
    if not isinstance(p.base_dist, torch.distributions.Normal) or p.reinterpreted_batch_ndims != 2:
        raise NotImplementedError(f"KL(MatrixNormal || {p}): only Normal(...).to_event(2) is supported")
    loc, scale = (t.expand(p.batch_shape + q.event_shape).flatten(-2) for t in (p.base_dist.loc, p.base_dist.scale))
    factor = q.flat._unbroadcasted_scale_tril  # one for all draws
    trace = (q.flat.variance / scale**2).sum(-1)
    shift = ((q.flat.loc - loc) / scale).square().sum(-1)
    log_det = 2 * (scale.log().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))
    return 0.5 * (trace + shift - loc.shape[-1] + log_det)
