"""Likelihoods p(y given ŷ): what turns the outputs of a network or predictor into a distribution over targets."""

from __future__ import annotations

import copy
from enum import StrEnum
from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.parameters import declare


class Likelihood(nn.Module):
    """p(y given ŷ): turns outputs ``[..., n, outputs]`` into a distribution of batch_shape ``[..., n]``.

    A likelihood with learned numbers of its own overrides :meth:`copies` and :meth:`rows`, so that posteriors that train side
    by side do not share them.

    Attributes:
        outputs: how many numbers it reads per item; ``None`` where that is the number of classes.
        targets: in words, what y may be.
    """

    outputs: ClassVar[int | None] = 1
    targets: ClassVar[str] = "real numbers"

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        raise NotImplementedError

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂(−log p(y given ŷ))/∂ŷ, which the synthetic gradient stands in for: same shape as ``outputs``."""
        total = lambda outputs: -self(outputs).log_prob(targets).sum()  # noqa: E731
        return torch.func.grad(total)(outputs)

    def cast(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Targets as the distribution reads them: integers become floats of the outputs' type, unless they are classes."""
        return targets if targets.is_floating_point() else targets.to(outputs.dtype)

    def copies(self, posteriors: int) -> Self:
        """The same likelihood with learned numbers ``[posteriors]`` of its own for each posterior; itself where it has none."""
        return self

    def rows(self, index: Tensor) -> Self:
        """The likelihood of outputs ``[len(index), n, outputs]`` whose row i is of posterior ``index[i]``."""
        return self


class CategoricalLikelihood(Likelihood):
    """y ~ Categorical(softmax ŷ): classification."""

    outputs = None
    targets = "classes 0, 1, …"

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=outputs)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Closed form: softmax(ŷ) − onehot(y)."""
        return outputs.softmax(-1) - nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)

    def cast(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Classes stay integers."""
        return targets


class GaussianLikelihood(Likelihood):
    """y ~ N(ŷ, noise²): regression with one output.

    Args:
        noise: standard deviation, initial or fixed: a number, or ``[K]``, one for each of K posteriors.
        learned: whether the noise is a parameter.
    """

    log_noise: Tensor

    def __init__(self, noise: float | Tensor = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        declare(self, "log_noise", torch.as_tensor(noise).log(), learned=learned)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Normal(outputs[..., 0], self.log_noise.exp()[..., None])  # [..., K, n] and [K, 1]

    def copies(self, posteriors: int) -> Self:
        """With learned noise and several posteriors: ``log_noise`` ``[posteriors]``."""
        if posteriors == 1 or not isinstance(self.log_noise, nn.Parameter) or self.log_noise.dim():
            return self
        return self.with_noise(self.log_noise.expand(posteriors))

    def rows(self, index: Tensor) -> Self:
        """``log_noise`` ``[len(index)]``, where it has one per posterior."""
        return self.with_noise(self.log_noise[index]) if self.log_noise.dim() else self

    def with_noise(self, log_noise: Tensor) -> Self:
        """A copy with this ``log_noise``."""
        other = copy.copy(self)
        other._parameters, other._buffers = dict(self._parameters), dict(self._buffers)
        numbers = log_noise.detach().clone()
        other.log_noise = nn.Parameter(numbers) if isinstance(self.log_noise, nn.Parameter) else numbers
        return other

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        """A single noise, as earlier versions wrote for all posteriors together, becomes that of each."""
        stored = state_dict.get(f"{prefix}log_noise")
        if stored is not None and stored.dim() == 0:
            state_dict[f"{prefix}log_noise"] = stored.expand_as(self.log_noise)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class BernoulliLikelihood(Likelihood):
    """y ~ Bernoulli(sigmoid ŷ), y in {0, 1}, integers or floats: binary classification with one output."""

    targets = "0 and 1"

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=outputs[..., 0])


class PoissonLikelihood(Likelihood):
    """y ~ Poisson(exp ŷ): counts with one output, the log rate."""

    targets = "counts 0, 1, 2, …"

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(outputs[..., 0].exp())


class LikelihoodName(StrEnum):
    """Likelihoods by name."""

    CATEGORICAL = "categorical"
    """Classes 0, 1, …; one output per class."""
    GAUSSIAN = "gaussian"
    """Real targets; one output, the mean; the noise is learned."""
    BERNOULLI = "bernoulli"
    """Targets 0 and 1; one output, the log odds."""
    POISSON = "poisson"
    """Counts; one output, the log rate."""


LIKELIHOODS: dict[LikelihoodName, type[Likelihood]] = {
    LikelihoodName.CATEGORICAL: CategoricalLikelihood,
    LikelihoodName.GAUSSIAN: GaussianLikelihood,
    LikelihoodName.BERNOULLI: BernoulliLikelihood,
    LikelihoodName.POISSON: PoissonLikelihood,
}
