"""Likelihoods p(y given ŷ): what turns the outputs of a network or predictor into a distribution over targets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from enum import StrEnum
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.distributions.by_class import ClassByClass
from models.parameters import declare


class Likelihood(nn.Module):
    """p(y given ŷ): turns outputs ``[..., n, outputs]`` into a distribution of batch_shape ``[..., n]``.

    One of your own is a subclass with :meth:`forward`, or, where there is nothing to learn, any function (see
    :class:`OwnLikelihood`). Its event_shape is that of one target: ``[]`` for y ``[n]``, ``[d]`` for y ``[n, d]``. A likelihood
    with learned numbers of its own overrides :meth:`copies` and :meth:`rows`, so that posteriors that train side by side do not
    share them.

    Attributes:
        outputs: how many numbers it reads per item; ``None`` where that is the number of classes.
        targets: in words, what y may be.
    """

    outputs: int | None = 1
    targets: str = "real numbers"

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        raise NotImplementedError

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂(−log p(y given ŷ))/∂ŷ, which the synthetic gradient stands in for: same shape as ``outputs``."""
        total = lambda outputs: -self(outputs).log_prob(targets).sum()  # noqa: E731
        return torch.func.grad(total)(outputs)

    def cast(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Targets as the distribution reads them: integers become floats of the outputs' type, unless they are classes."""
        return targets if targets.is_floating_point() else targets.to(outputs.dtype)

    def given(self, shot: float, way: int) -> Likelihood:
        """The likelihood in tasks of ``way`` classes with ``shot`` support items each; itself where they do not matter."""
        return self

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
        if outputs.stride(-1) == 1 or torch.is_grad_enabled():  # training stays what it was to the digit
            return dist.Categorical(logits=outputs)
        return ClassByClass(outputs)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Closed form: softmax(ŷ) − onehot(y)."""
        return outputs.softmax(-1) - nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)

    def cast(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Classes stay integers."""
        return targets


class TemperedCategorical(CategoricalLikelihood):
    """y ~ Categorical(softmax(ŷ / T)), with a temperature T that is fitted after training, on other data than the rest.

    In tasks of w classes with n support items each, of which :meth:`given` tells, T = T₁ nᵖ w^q: what makes a learner too sure,
    or too careful, of one item is not what makes it so of five. T₁ is 1, p and q are 0 at first. Source: Guo et al. 2017, "On
    calibration of modern neural networks", section 4.2.
    """

    log_temperature: Tensor
    powers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_temperature", torch.zeros(()))
        self.register_buffer("powers", torch.zeros(2))
        self.shape = (0.0, 0.0)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        for name in ("log_temperature", "powers"):  # checkpoints of before: 1 and 0
            state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def given(self, shot: float, way: int) -> TemperedCategorical:
        other = copy.copy(self)
        other.shape = log_shape(shot, way)
        return other

    @property
    def inverse(self) -> Tensor:
        """1 / T."""
        shot, way = self.shape
        return (-self.log_temperature - self.powers[0] * shot - self.powers[1] * way).exp()

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return super().forward(outputs * self.inverse)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Closed form: (softmax(ŷ / T) − onehot(y)) / T."""
        return self.inverse * super().output_gradient(self.inverse * outputs, targets)


def log_shape(shot: float, way: int) -> tuple[float, float]:
    """Logarithms of a task's support items a class, at least one, and of its classes."""
    return math.log(max(shot, 1.0)), math.log(way)


class GaussianLikelihood(Likelihood):
    """y ~ N(ŷ, noise²): regression with one output and y ``[n]``, or with several and y ``[n, outputs]``.

    Several outputs are independent given x and the weights, each with a noise of its own.

    Args:
        noise: standard deviation, initial or fixed: a number, or ``[K]``, one for each of K posteriors; with several outputs a
            number, ``[outputs]`` or ``[K, outputs]``.
        outputs: d, how many numbers an item's target is.
        learned: whether the noise is a parameter.

    Raises:
        ValueError: noise of another number of outputs.
    """

    log_noise: Tensor

    def __init__(self, noise: float | Tensor = 1.0, *, outputs: int = 1, learned: bool = True) -> None:
        super().__init__()
        noise = torch.as_tensor(noise)
        if outputs > 1 and noise.dim() == 0:
            noise = noise.expand(outputs)
        if outputs > 1 and noise.shape[-1] != outputs:
            raise ValueError(f"{noise.shape[-1]} numbers of noise for {outputs} outputs: give one, or one for each")
        self.outputs: int = outputs
        declare(self, "log_noise", noise.log(), learned=learned)

    @property
    def is_each_posteriors(self) -> bool:
        """Whether the noise has a dimension of posteriors."""
        return self.log_noise.dim() > (self.outputs > 1)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        noise = self.log_noise.exp()
        if self.outputs == 1:
            return dist.Normal(outputs[..., 0], noise[..., None])  # [..., K, n] and [K, 1]
        return dist.Normal(outputs, noise[..., None, :]).to_event(1)  # [..., K, n, d] and [K, 1, d]

    def copies(self, posteriors: int) -> Self:
        """With learned noise and several posteriors: ``log_noise`` ``[posteriors]`` or ``[posteriors, outputs]``."""
        if posteriors == 1 or not isinstance(self.log_noise, nn.Parameter) or self.is_each_posteriors:
            return self
        return self.with_noise(self.log_noise.expand(posteriors, *self.log_noise.shape))

    def rows(self, index: Tensor) -> Self:
        """``log_noise`` of the posteriors ``index``, where it has one per posterior."""
        return self.with_noise(self.log_noise[index]) if self.is_each_posteriors else self

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
        if stored is not None and stored.dim() < self.log_noise.dim():
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


class OwnLikelihood(Likelihood):
    """Any function from outputs ``[..., n, outputs]`` to a Pyro distribution of batch_shape ``[..., n]``.

    For targets of y ``[n]`` take the numbers of an item apart, ``lambda f: dist.StudentT(4.0, f[..., 0], f[..., 1].exp())``;
    for y ``[n, d]`` end in ``.to_event(1)``. A function that is an ``nn.Module`` may have parameters; they are trained with the
    weights, as points, and posteriors side by side share them.

    Args:
        function: called with ``[..., n, outputs]``; leading dimensions are draws and posteriors.
    """

    outputs = None
    targets = "numbers that the distribution can give"

    def __init__(self, function: Callable[[Tensor], dist.TorchDistribution]) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return self.function(outputs)


class LikelihoodName(StrEnum):
    """Likelihoods by name."""

    CATEGORICAL = "categorical"
    """Classes 0, 1, …; one output per class."""
    GAUSSIAN = "gaussian"
    """Real targets, one output each, the mean; the noise is learned."""
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
