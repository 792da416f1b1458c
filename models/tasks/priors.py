"""Priors p_ψ(w) over the weights of one class; ψ is learned (empirical Bayes) or itself has a prior (hierarchical)."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.distributions.mixture import GaussianMixture
from models.parameters import declare


class Prior(nn.Module):
    """Base class of priors over class weights ``[D]``, shared by all classes and tasks.

    ``hyperparameters()`` gives ψ (and, in a hierarchical prior, samples it); ``distribution(ψ, way)`` gives p(w given ψ).
    The guide reads ψ through the same two methods, because its inner steps descend KL(q ‖ p_ψ).
    """

    loc: Tensor

    def hyperparameters(self) -> tuple[Tensor, ...]:
        """ψ as tensors."""
        raise NotImplementedError

    def distribution(self, hyperparameters: tuple[Tensor, ...], way: int) -> dist.TorchDistribution:
        """p(w given ψ) with batch_shape ``[]`` and event_shape ``[way, D]``."""
        raise NotImplementedError

    def moments(self, hyperparameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of each weight given ψ, ``[..., 1, D]``."""
        return self.distribution(hyperparameters, 1).mean, 0.5 * self.variance(hyperparameters).log()

    def variance(self, hyperparameters: tuple[Tensor, ...]) -> Tensor:
        """Marginal variance of each weight given ψ, ``[..., 1, D]``."""
        return self.distribution(hyperparameters, 1).variance

    def merge(self) -> None:
        """Become the Gaussian with its moments, where it is another distribution, so that a Gaussian posterior can be it."""

    def narrowest(self, hyperparameters: tuple[Tensor, ...]) -> Tensor | None:
        """The least variance that curves −log p(w), ``[..., 1, D]``; ``None`` where it is :meth:`variance`."""
        return None

    def kl_gradient(self, hyperparameters: tuple[Tensor, ...], loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """∇_θ KL(N(loc, exp(log_scale)²) ‖ p_ψ), θ = (loc, log_scale), each ``[..., way, D]``.

        Source: Hu et al. 2019, equation 9, last term. Generic, by differentiating the registered KL.
        """

        def total_kl(loc: Tensor, log_scale: Tensor) -> Tensor:
            q = dist.Normal(loc, log_scale.exp()).to_event(2)
            return torch.distributions.kl_divergence(q, self.distribution(hyperparameters, loc.shape[-2])).sum()

        return torch.func.grad(total_kl, argnums=(0, 1))(loc, log_scale)


class GaussianPrior(Prior):
    """p_ψ(w_c) = N(μ, diag σ²), ψ = (μ, log σ) learned: the empirical Bayes prior.

    Source: Hu et al. 2019, equation 3 and "Model specification".

    Args:
        loc: ``[D]``, initial μ.
        scale: ``[D]``, initial σ.
        learned: whether ψ is; a known prior keeps them.
    """

    log_scale: Tensor
    logarithms: ClassVar = ("log_scale",)

    def __init__(self, loc: Tensor, scale: Tensor, *, learned: bool = True) -> None:
        super().__init__()
        declare(self, "loc", loc.clone(), learned=learned)
        declare(self, "log_scale", scale.log(), learned=learned)

    @classmethod
    def from_class_means(cls, means: Tensor) -> GaussianPrior:
        """Start at the moments of the base classes' mean features, ``[classes, D]``."""
        return cls(means.mean(0), means.std(0).clamp_min(1e-3))

    def hyperparameters(self) -> tuple[Tensor, ...]:
        return self.loc, self.log_scale

    def distribution(self, hyperparameters: tuple[Tensor, ...], way: int) -> dist.TorchDistribution:
        loc, log_scale = hyperparameters  # [..., D], with leading dimensions where ψ is sampled in particles
        shape = (*loc.shape[:-1], way, loc.shape[-1])
        return dist.Normal(loc[..., None, :].expand(shape), log_scale.exp()[..., None, :].expand(shape)).to_event(2)

    def moments(self, hyperparameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """ψ itself, to the last digit."""
        loc, log_scale = hyperparameters
        return loc[..., None, :], log_scale[..., None, :]

    def variance(self, hyperparameters: tuple[Tensor, ...]) -> Tensor:
        return (2 * hyperparameters[1]).exp()[..., None, :]

    def kl_gradient(self, hyperparameters: tuple[Tensor, ...], loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form, see :func:`gaussian_kl_gradient`."""
        prior_loc, prior_log_scale = (h[..., None, :] for h in hyperparameters)
        return gaussian_kl_gradient(prior_loc, prior_log_scale, loc, log_scale)


def gaussian_kl_gradient(prior_loc: Tensor, prior_log_scale: Tensor, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """∇_θ KL(N(m, s²) ‖ N(μ, σ²)): (m − μ) / σ² for the mean and s² / σ² − 1 for the log standard deviation.

    Args:
        prior_loc, prior_log_scale: μ and log σ.
        loc, log_scale: m and log s, of shapes that broadcast with them.
    """
    precision = (-2 * prior_log_scale).exp()
    return (loc - prior_loc) * precision, (2 * log_scale).exp() * precision - 1


class HierarchicalGaussianPrior(GaussianPrior):
    """The same Gaussian with a prior on ψ: μ ~ N(m₀, τ²), log σ ~ N(l₀, τ²), sites ``prior_loc`` and ``prior_log_scale``.

    Its guide is :class:`guides.tasks.hyper.HyperGuide`. Source: Hu et al. 2019, equation 2.

    Args:
        loc, scale: ``[D]``, centre of the hyper-prior.
        width: τ.
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, width: float = 1.0) -> None:
        super().__init__(loc, scale, learned=False)
        self.width = width

    def hyperparameters(self) -> tuple[Tensor, ...]:
        return tuple(
            pyro.sample(f"prior_{name}", dist.Normal(center, self.width).to_event(1))
            for name, center in (("loc", self.loc), ("log_scale", self.log_scale))
        )


class MixturePrior(Prior):
    """p_ψ(w_c) = Σ_k π N(μ_k, diag σ_k²), equal weights, ψ = (μ, log σ) learned.

    In learning without forgetting each component is the classifier of one base class. Source: Hu et al. 2019, section 3,
    evaluation (b).

    Args:
        loc: ``[components, D]``, initial means.
        scale: ``[components, D]``, initial standard deviations.
        kl: how KL(q ‖ p) is estimated, see :class:`~models.distributions.mixture.GaussianMixture`.
    """

    logarithms: ClassVar = ("log_scale",)

    def __init__(self, loc: Tensor, scale: Tensor, *, kl: str = "bound") -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(scale.log())
        self.kl = kl

    @classmethod
    def from_class_means(cls, means: Tensor) -> MixturePrior:
        """One component per base class, centred on its mean feature; ``[classes, D]``."""
        return cls(means, means.std(0).clamp_min(1e-3).expand_as(means))

    def hyperparameters(self) -> tuple[Tensor, ...]:
        return self.loc, self.log_scale

    def distribution(self, hyperparameters: tuple[Tensor, ...], way: int) -> dist.TorchDistribution:
        loc, log_scale = hyperparameters
        if loc.dim() > 2:  # each task has its own components, [tasks, components, D], which all its rows meet
            loc, log_scale = loc.unsqueeze(-3), log_scale.unsqueeze(-3)
        mixture = GaussianMixture(loc.new_zeros(loc.shape[-2]), loc, log_scale.exp(), kl=self.kl)
        return mixture.expand([way]).to_event(1)

    def moments(self, hyperparameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return hyperparameters[0].mean(-2, keepdim=True), 0.5 * self.variance(hyperparameters).log()

    def variance(self, hyperparameters: tuple[Tensor, ...]) -> Tensor:
        loc, log_scale = hyperparameters
        return (loc.square() + (2 * log_scale).exp()).mean(-2, keepdim=True) - loc.mean(-2, keepdim=True).square()

    @torch.no_grad()
    def merge(self) -> None:
        """All components in one place."""
        loc, log_scale = self.moments(self.hyperparameters())
        self.loc.copy_(loc.expand_as(self.loc))
        self.log_scale.copy_(log_scale.expand_as(self.log_scale))

    def narrowest(self, hyperparameters: tuple[Tensor, ...]) -> Tensor:
        """That of the narrowest component, in each dimension."""
        return (2 * hyperparameters[1]).exp().amin(-2, keepdim=True)
