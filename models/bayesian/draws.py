"""Drawing Gaussian weights where a network uses them: less variance in the gradient than one draw of all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.distributions.diagonal import GaussianWeights
from models.plates import plate_noise, plate_signs

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
SHAPE_QUERIES = (Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point)


class Estimator(StrEnum):
    """How the weights of a layer are drawn in training. All have the same expected gradient except LOCAL in convolutions."""

    LOCAL = "local"
    """Local reparameterization: draw each output from its own Gaussian (Kingma, Salimans and Welling 2015, equation 6). Exact
    for linear layers. In a convolution it ignores that positions share one kernel, so it trains another, noisier model."""
    FLIPOUT = "flipout"
    """One draw of the weights for the batch, with random signs for each example (Wen et al. 2018, equation 4). Exact."""
    PLAIN = "plain"
    """One draw of the weights for the batch (Blundell et al. 2015)."""


class DrawWhereUsed(TorchFunctionMode):
    """Inside this context a network may be called on the means of its weights: layers draw what they need.

    Linear layers and convolutions follow their estimator. Any other operation that touches a random weight gets one plain
    draw of it, the same one throughout the context, so every ``nn.Module`` is treated correctly.

    Args:
        weights: parameter name -> mean and variance; the network must hold these very ``loc`` tensors as its parameters.
        linear, convolution: estimators; a linear layer that is applied at several positions of an example, such as the tokens
            of a sequence, shares its weights among them and counts as a convolution.

    Raises:
        ValueError: a weight is used by two operations, which would draw it twice and independently.

    Source: Kingma, Salimans and Welling 2015, section 2.3.
    """

    def __init__(
        self,
        weights: Mapping[str, GaussianWeights],
        *,
        linear: Estimator = Estimator.LOCAL,
        convolution: Estimator = Estimator.FLIPOUT,
    ) -> None:
        super().__init__()
        self.named = {id(w.loc): (name, w) for name, w in weights.items()}
        self.draws: dict[int, Tensor] = {}
        self.used: set[int] = set()
        self.linear, self.convolution = RULES[linear], RULES[convolution]

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func in SHAPE_QUERIES or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        if func is F.linear or func in CONVOLUTIONS:
            inputs, weight, bias, options = layer_arguments(*args, **kwargs)
            rule = self.linear if func is F.linear and inputs.dim() == 2 else self.convolution
            if rule is not None and id(weight) in self.named:
                return rule(func, inputs, self.take(weight), None if bias is None else self.take(bias), options)
        return func(*(self.drawn(a) for a in args), **{k: self.drawn(a) for k, a in kwargs.items()})

    def take(self, parameter: Tensor) -> GaussianWeights:
        """The distribution of a parameter, which no other operation may use; a parameter that is not random has no
        variance.

        Raises:
            ValueError: the parameter is used twice in one pass.
        """
        if id(parameter) not in self.named:
            return GaussianWeights(parameter, torch.full_like(parameter, torch.finfo(parameter.dtype).tiny))
        name, weights = self.named[id(parameter)]
        if id(parameter) in self.used or id(parameter) in self.draws:
            raise ValueError(f"{name} is used twice in one pass, so it cannot be drawn where it is used: choose plain draws")
        self.used.add(id(parameter))
        return weights

    def drawn(self, value: Any) -> Any:
        """A plain draw in place of a random weight; sequences are searched too."""
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(self.drawn(part) for part in value)
        if id(value) not in self.named:
            return value
        if id(value) not in self.draws:
            weights = self.take(value)
            self.used.discard(id(value))
            self.draws[id(value)] = weights.loc + weights.variance.sqrt() * torch.randn_like(weights.loc)
        return self.draws[id(value)]


def layer_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any):
    """``input``, weight, bias and other options of a call to ``F.linear`` or ``F.conv*d``."""
    names = ("stride", "padding", "dilation", "groups")
    return input, weight, bias, dict(zip(names, rest, strict=False)) | options


def local(
    func: Callable, inputs: Tensor, weight: GaussianWeights, bias: GaussianWeights | None, options: dict[str, Any]
) -> Tensor:
    """Outputs for ``inputs`` x ``[n, ...]`` drawn from N(x·μ, x²·σ²), independently: ``func(x, w, b)`` in distribution,
    output by output.

    Source: Kingma, Salimans and Welling 2015, equation 6.
    """
    if func is F.linear and inputs.dim() == 2 and bias is not None:
        layer = MappedLocalLinear if torch._C._are_functorch_transforms_active() else LocalLinear
        return layer.apply(inputs, weight.loc, weight.variance, bias.loc, bias.variance)
    mean = func(inputs, weight.loc, None if bias is None else bias.loc, **options)
    variance = func(inputs.square(), weight.variance, None if bias is None else bias.variance, **options)
    if bias is None:  # a variance may be 0, where the root has no gradient
        variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
    return mean + variance.sqrt() * plate_noise(mean.shape, mean, 0)


class LocalLinear(torch.autograd.Function):
    """The linear layer of :func:`local`, with its gradient written out: two products forward and four backward, and half
    the arrays of automatic differentiation.

    With scale s = √(x²·σ² + σ_b²) and noise ε, y = x·μ + μ_b + s ε, so ∂y/∂variance = ε/(2 s). Inputs are ``[n, in]``, or
    ``[S, n, in]`` where there are weights ``[S, out, in]``.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, variance: Tensor, bias: Tensor, bias_variance: Tensor) -> Tensor:
        squares = inputs * inputs
        scale = affine(bias_variance, squares, variance).sqrt_()
        noise = plate_noise(scale.shape, scale, -2)
        outputs = affine(bias, inputs, weight).addcmul_(scale, noise)
        ctx.save_for_backward(inputs, weight, variance, noise.div_(scale), squares)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        inputs, weight, variance, ratio, squares = (t.to(gradient.dtype) for t in ctx.saved_tensors)  # under autocast
        spread = torch.addcmul(gradient.new_zeros(()), gradient, ratio, value=0.5)  # with respect to the outputs' variance
        to_inputs = None
        if ctx.needs_input_grad[0]:
            to_inputs = (gradient @ weight).addcmul_(spread @ variance, inputs, value=2)
        return (
            to_inputs,
            gradient.mT @ inputs,
            spread.mT @ squares,
            gradient.sum(-2),
            spread.sum(-2),
        )


class MappedLocalLinear(torch.autograd.Function):
    """:class:`LocalLinear` inside ``vmap``: all copies in one call, along a dimension of their own. A class apart, for PyTorch
    looks up the signature of such a function whenever it is called."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        raise NotImplementedError("outside of vmap it is LocalLinear")

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """There is nothing to keep: :meth:`vmap` has the gradient of what it calls."""

    @staticmethod
    def vmap(info, in_dims, *arguments):
        def rows(tensor: Any, dim: int | None) -> Any:
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        return LocalLinear.apply(*map(rows, arguments, in_dims)), 0


def affine(bias: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ + b, of ``inputs`` x ``[n, in]`` or of several at once, ``[S, n, in]``."""
    product = torch.addmm if inputs.dim() == 2 else torch.baddbmm
    return product(bias.unsqueeze(-2), inputs, weight.mT)


def flipout(
    func: Callable, inputs: Tensor, weight: GaussianWeights, bias: GaussianWeights | None, options: dict[str, Any]
) -> Tensor:
    """``func(x, μ, b) + s ∘ func(r ∘ x, σ ∘ ε)`` with random signs r, s for each example's channels; x is
    ``inputs``.

    Each example sees weights of the right distribution, the same ones at all its positions. Source: Wen et al. 2018,
    equation 4.
    """
    mean = func(inputs, weight.loc, None if bias is None else bias.loc, **options)
    noise = weight.variance.sqrt() * torch.randn_like(weight.loc)
    mean = mean + func(inputs * signs(func, inputs), noise, None, **options) * signs(func, mean)
    if bias is None:
        return mean
    like = first_position(func, mean)
    spread = bias.variance.clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
    return mean + spread.reshape(like.shape[-1:] if func is F.linear else like.shape[1:]) * plate_noise(like.shape, like, 0)


def signs(func: Callable, like: Tensor) -> Tensor:
    """±1 with probability ½ for each example and channel of ``like``, inputs or outputs of the layer ``func``,
    to be broadcast over positions."""
    return plate_signs(first_position(func, like), 0)


def first_position(func: Callable, like: Tensor) -> Tensor:
    """``like``, inputs or outputs of the layer ``func``, at the first position: one number for each example and channel."""
    for dim in range(1, like.dim() - 1) if func is F.linear else range(2, like.dim()):
        like = like.narrow(dim, 0, 1)
    return like


RULES: dict[Estimator, Callable | None] = {Estimator.LOCAL: local, Estimator.FLIPOUT: flipout, Estimator.PLAIN: None}


def call(network: nn.Module, weights: Mapping[str, Tensor | GaussianWeights], inputs: Tensor, **estimators: Any) -> Tensor:
    """``network(inputs)`` with the named parameters replaced by drawn weights, or by Gaussians it draws from itself.

    Args:
        weights: parameter name -> tensor, or :class:`~models.distributions.diagonal.GaussianWeights`.
        estimators: of :class:`DrawWhereUsed`.
    """
    deferred = {name: w for name, w in weights.items() if isinstance(w, GaussianWeights)}
    if not deferred:
        return torch.func.functional_call(network, dict(weights), (inputs,))  # type: ignore[arg-type]
    means = {name: w.loc if isinstance(w, GaussianWeights) else w for name, w in weights.items()}
    with DrawWhereUsed(deferred, **estimators):
        return torch.func.functional_call(network, means, (inputs,))
