"""Likelihoods p(y given ŷ): what turns the outputs of a network or predictor into a distribution over targets."""

from __future__ import annotations

from enum import StrEnum

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.parameters import declare


class Likelihood(nn.Module):
    """p(y given ŷ): turns outputs ``[..., n, outputs]`` into a distribution of batch_shape ``[..., n]``."""

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        raise NotImplementedError

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂(−log p(y given ŷ))/∂ŷ, which the synthetic gradient stands in for: same shape as ``outputs``."""
        total = lambda outputs: -self(outputs).log_prob(targets).sum()  # noqa: E731
        return torch.func.grad(total)(outputs)


class CategoricalLikelihood(Likelihood):
    """y ~ Categorical(softmax ŷ): classification."""

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=outputs)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Closed form: softmax(ŷ) − onehot(y)."""
        return outputs.softmax(-1) - nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)


class GaussianLikelihood(Likelihood):
    """y ~ N(ŷ, noise²): regression with one output.

    Args:
        noise: standard deviation, initial or fixed.
        learned: whether the noise is a parameter.
    """

    log_noise: Tensor

    def __init__(self, noise: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        declare(self, "log_noise", torch.tensor(noise).log(), learned=learned)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Normal(outputs[..., 0], self.log_noise.exp())


class BernoulliLikelihood(Likelihood):
    """y ~ Bernoulli(sigmoid ŷ), y in {0, 1} as floats: binary classification with one output."""

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=outputs[..., 0])


class PoissonLikelihood(Likelihood):
    """y ~ Poisson(exp ŷ): counts with one output, the log rate."""

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(outputs[..., 0].exp())


class LikelihoodName(StrEnum):
    """Likelihoods by name."""

    CATEGORICAL = "categorical"
    """Classes 0, 1, …; one output a class."""
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
