"""A Gaussian over a long weight vector, one variance per weight, whose KL to a Gaussian prior takes few passes."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl


class GaussianWeights(NamedTuple):
    """Weights that are not drawn yet: the network draws where it uses them (:mod:`models.bayesian.draws`).

    Attributes:
        loc: means, ``[..., P]`` or the shape of one parameter.
        variance: the same shape.
    """

    loc: Tensor
    variance: Tensor


class DiagonalGaussian(TorchDistribution):
    """N(loc, diag exp(log_scale)²): event_shape ``[P]``, batch_shape the leading dimensions.

    The same as ``Normal(loc, log_scale.exp()).to_event(1)``; it keeps the logarithm, so that a step of training touches the
    weights as few times as possible.

    Args:
        loc: ``[..., P]``.
        log_scale: the same shape, log standard deviations.
        deferred: whether a site may hold mean and variance in place of a draw where :class:`DeferredDraws` asks for it.
    """

    arg_constraints: ClassVar = {"loc": constraints.real_vector, "log_scale": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, *, deferred: bool = False, validate_args: bool | None = False) -> None:
        self.loc, self.log_scale, self.deferred = loc, log_scale, deferred
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> DiagonalGaussian:
        shape = (*batch_shape, *self.event_shape)
        if shape == self.loc.shape:
            return self
        return DiagonalGaussian(self.loc.expand(shape), self.log_scale.expand(shape), deferred=self.deferred)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @functools.cached_property
    def variance(self) -> Tensor:
        """``[..., D]``."""
        return Variance.apply(self.log_scale)

    def as_normal(self) -> dist.TorchDistribution:
        """The same distribution by Pyro's own parts."""
        return dist.Normal(self.loc, self.log_scale.exp(), validate_args=False).to_event(1)

    def rsample(self, sample_shape=()) -> Tensor:
        noise = torch.randn(self.shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.log_scale.exp() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., P] -> [...]``, nats."""
        return self.as_normal().log_prob(value)


class DeferredDraws(Messenger):
    """Handler: sites of ``DiagonalGaussian(..., deferred=True)`` hold :class:`GaussianWeights`, for a network that draws by
    itself.

    Only the objective (:class:`inference.elbo.RateDistortionELBO`) switches it on; everywhere else, as in Pyro's own ``SVI``,
    ``Predictive`` and autoguides, the site holds an ordinary draw.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and is_deferred(msg["fn"]):
            msg["value"], msg["done"] = draw(msg["fn"]), True


def is_deferred(q: Any) -> bool:
    """Whether the weights that are distributed as ``q`` are drawn by a network."""
    return isinstance(q, DiagonalGaussian) and q.deferred


def draw(q: Any) -> Tensor | GaussianWeights:
    """A draw of the distribution ``q``, or where it is deferred what a network draws from by itself."""
    return GaussianWeights(q.loc, q.variance) if is_deferred(q) else q()


@register_kl(DiagonalGaussian, Distribution)
def _kl_diagonal_any(q: DiagonalGaussian, p: Distribution) -> Tensor:
    """Whatever is registered for ``Normal(...).to_event(1)``."""
    return kl_divergence(q.as_normal(), p)


@register_kl(DiagonalGaussian, torch.distributions.Independent)
def _kl_diagonal_independent(q: DiagonalGaussian, p: torch.distributions.Independent) -> Tensor:
    """Where ``p`` is Gaussian, :class:`GaussianRate`; else whatever is registered."""
    base = p.base_dist
    if not isinstance(base, torch.distributions.Normal) or p.reinterpreted_batch_ndims != 1:
        return kl_divergence(q.as_normal(), p)
    prior_loc = None if isinstance(base, CentredNormal) else unexpand(base.loc)
    return GaussianRate.apply(q.loc, q.log_scale, q.variance, prior_loc, unexpand(base.scale))


class CentredNormal(dist.Normal):
    """A Gaussian whose mean is 0, which its type says, so that no array of a network's size is spent on subtracting it."""


class Variance(torch.autograd.Function):
    """σ² = exp(2 log σ) and its gradient, in one new array each."""

    @staticmethod
    def forward(ctx, log_scale: Tensor) -> Tensor:
        variance = (2 * log_scale).exp_()
        ctx.save_for_backward(variance)
        return variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (variance,) = ctx.saved_tensors
        return torch.addcmul(gradient.new_zeros(()), gradient, variance, value=2)


class GaussianRate(torch.autograd.Function):
    """Σ_i log(s_i/σ_i) + (σ_i² + (μ_i − m_i)²)/(2 s_i²) − ½, the KL between diagonal Gaussians, ``[..., P] -> [...]``.

    Written out because arrays of a network's size are dear: two new ones here, a dozen by automatic differentiation. The
    prior's m (``None``: 0) and s are broadcast against ``[..., P]`` and get no gradient. ``log_scale`` and ``variance``, which
    is exp(2 log_scale), get one each: −1 and 1/(2 s²), no arrays where s is the same for all weights.
    """

    @staticmethod
    def forward(ctx, loc: Tensor, log_scale: Tensor, variance: Tensor, prior_loc: Tensor | None, prior_scale: Tensor) -> Tensor:
        precision = prior_scale.square().reciprocal()
        ctx.save_for_backward(loc, prior_loc, precision)
        distance = loc if prior_loc is None else loc - prior_loc
        squares = torch.addcmul(variance, distance, distance)
        logs = (prior_scale.log() - 0.5).sum(-1) * (loc.shape[-1] / prior_scale.shape[-1])
        return 0.5 * weighted_sum(squares, precision) - log_scale.sum(-1) + logs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        loc, prior_loc, precision = ctx.saved_tensors
        gradient = gradient[..., None]
        weight = gradient * precision
        to_loc = loc * weight if prior_loc is None else (loc - prior_loc).mul_(weight)
        return to_loc, (-gradient).expand_as(loc), (0.5 * weight).expand_as(loc), None, None


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Σ_i weights_i values_i (``weights`` and ``values``) over the last dimension; one weight for all costs no array of
    products."""
    return values.sum(-1) * weights[..., 0] if weights.shape[-1] == 1 else torch.linalg.vecdot(values, weights)


def unexpand(tensor: Tensor) -> Tensor:
    """The tensor with size 1 where it only repeats itself: a prior shared by all weights costs one number, not P."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]
