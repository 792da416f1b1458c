"""What a Bayesian network's data, likelihood and prior must satisfy before any work; every error is one line."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems
from inference.bnn.algorithms import Algorithm
from inference.runs.checks import check_items
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import PriorName, WeightPrior, build_weight_prior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import LIKELIHOODS, CategoricalLikelihood, GaussianLikelihood, Likelihood, LikelihoodName
from models.networks.layers import embed

OWN_PRIORS = {
    Algorithm.FIXED: "N(0, I)",
    Algorithm.BETA_BNN: "the mixture of its posteriors",
    Algorithm.ONLINE: "the mixture of its posteriors",
    Algorithm.DETERMINISTIC: "none",
}

OWN_WEIGHTS = {
    Algorithm.LAST_LAYER: "is of the last layer's weights",
    Algorithm.DETERMINISTIC: "has points alone",
    Algorithm.NUTS: "samples all weights",
}


def read_data(x: Tensor, y: Tensor, likelihood: Likelihood) -> LabelledItems:
    """Items and targets as one data set.

    Targets ``[n, 1]`` are read as ``[n]``; boolean targets as 0 and 1. Where targets are classes, these are named 0, 1, ….

    Raises:
        UserError: no items, other shapes, or real numbers for classes.
    """
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise UserError(f"x and y must be tensors, not {type(x).__name__} and {type(y).__name__}: use torch.as_tensor")
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if y.dim() != 1:
        raise UserError(f"y has shape {'×'.join(map(str, y.shape)) or '()'}: give one target per item, shape n or n×1")
    if len(x) != len(y) or not len(x):
        raise UserError(f"{len(x)} items and {len(y)} targets: give one target per item, and one item at least")
    y = y if y.is_floating_point() else y.long()
    if not isinstance(likelihood, CategoricalLikelihood):
        return LabelledItems(x, y, ())
    if y.is_floating_point():
        raise UserError(
            "categorical targets are classes 0, 1, …, but y holds real numbers: give integers, or `likelihood=gaussian`"
        )
    return LabelledItems(x, y, tuple(map(str, range(int(y.max()) + 1))))


def check_data(network: nn.Module, data: LabelledItems, likelihood: Likelihood) -> None:
    """Fail where the network cannot take the items, or the likelihood not its outputs or the targets.

    Raises:
        UserError: one of these, or what :func:`~inference.runs.checks.check_items` finds.
    """
    check_items(network, data, classes=isinstance(likelihood, CategoricalLikelihood))
    outputs, name = embed(network, data.items[:2]), likelihood_name(likelihood)
    if outputs.dim() != 2:
        shape = "×".join(map(str, outputs.shape[1:])) or "()"
        raise UserError(
            f"the network's outputs have shape {shape} per item: give it a vector of outputs, even if it is one number"
        )
    if likelihood.outputs not in (None, outputs.shape[1]):
        raise UserError(f"the network has {outputs.shape[1]} outputs, but the {name} likelihood reads {likelihood.outputs}")
    with torch.no_grad():
        support = copy.deepcopy(likelihood).cpu()(outputs[:1]).support
    wrong = ~support.check(likelihood.cast(data.labels, outputs))
    if bool(wrong.any()):
        first = data.labels[wrong][0]
        raise UserError(
            f"{name} targets are {likelihood.targets}, but {int(wrong.sum())} of {len(data)} are not, such as {first:g}"
        )


def likelihood_name(likelihood: Likelihood) -> str:
    """Its :class:`~models.likelihoods.LikelihoodName`, or its class where it has none."""
    return next((name.value for name, kind in LIKELIHOODS.items() if type(likelihood) is kind), type(likelihood).__name__)


def choose_likelihood(given: Likelihood | str | None, targets: Tensor, noise: float | None = None) -> Likelihood:
    """As given; by name; or by the targets: categorical for integers, Gaussian for floats, with known or learned ``noise``.

    Raises:
        UserError: an unknown name, or noise that is not positive, or of another likelihood.
    """
    check_positive("noise", noise)
    if isinstance(given, Likelihood):
        if noise is not None:
            raise UserError(f"`noise={noise:g}` is of a likelihood by name: a module has its own")
        return given
    if given is None:
        real = isinstance(targets, Tensor) and targets.is_floating_point()
        given = LikelihoodName.GAUSSIAN if real else LikelihoodName.CATEGORICAL
    if given not in list(LikelihoodName):
        raise UserError(f"unknown likelihood {given!r}: choose {', '.join(LikelihoodName)}")
    if noise is None:
        return LIKELIHOODS[LikelihoodName(given)]()
    if given != LikelihoodName.GAUSSIAN:
        raise UserError(f"`noise={noise:g}` is of gaussian targets, and the likelihood is {given}: leave it out")
    return GaussianLikelihood(noise, learned=False)


def check_positive(argument: str, value: float | None) -> None:
    """Fail where a number is given for ``argument`` that is not positive.

    Raises:
        UserError: this, or no number.
    """
    if value is not None and not (isinstance(value, Real) and 0 < value < math.inf):
        raise UserError(f"`{argument}={value!r}` must be a positive number")


def choose_algorithm(name: str) -> Algorithm:
    """By name.

    Raises:
        UserError: an unknown name.
    """
    if name not in list(Algorithm):
        raise UserError(f"unknown algorithm {name!r}: choose {', '.join(Algorithm)}")
    return Algorithm(name)


def choose_beta(algorithm: Algorithm, beta: float | None) -> float:
    """The algorithm's own β, or the one given, 1 when there is none.

    Raises:
        UserError: a β that is no finite number, 0 or more, or not the one that the algorithm fixes.
    """
    if beta is None:
        return algorithm.betas((1.0,))[0]
    if not isinstance(beta, Real) or not 0 <= beta < math.inf:
        raise UserError(f"`beta={beta!r}` must be a finite number, 0 or more")
    fixed = algorithm.betas((float(beta),))[0]
    if beta != fixed:
        raise UserError(f"{algorithm} has β = {fixed:g}: leave out `beta={beta:g}`, or choose another algorithm")
    return fixed


def choose_prior(
    algorithm: Algorithm,
    prior: WeightPrior | str | None = None,
    scale: float | None = None,
    scales: PriorScales | str | None = None,
) -> tuple[WeightPrior | None, PriorScales]:
    """The prior and its scales: of algorithms that take one; of a mixture, which starts there; as a module, of fixed-prior too.

    Args:
        prior: Gaussian when not given; ``None`` is returned where the algorithm has its own.
        scale: its standard deviation or scale, in units of 1/√fan-in unless the ``scales`` are fixed; 1 when not given.
        scales: learned for each layer when not given, but fixed where a ``scale`` or a module is, or where they cannot be
            learned.

    Raises:
        UserError: an unknown name, a scale that is not positive, or a prior for an algorithm that has its own.
    """
    module = isinstance(prior, WeightPrior)
    check_positive("prior_scale", scale)
    if scales is not None and scales not in list(PriorScales):
        raise UserError(f"unknown prior_scales {scales!r}: choose {', '.join(PriorScales)}")
    if module and (scale is not None or scales is not None):
        given = f"prior_scale={scale:g}" if scale is not None else f"prior_scales={scales}"
        raise UserError(f"`{given}` is of a prior by name: a module has its own")
    fixed = module or scale is not None or not algorithm.learns_prior
    kind = PriorScales(scales) if scales is not None else PriorScales.FIXED if fixed else PriorScales.LAYER
    if algorithm.takes_prior and kind.learned and not algorithm.learns_prior:
        raise UserError(f"{algorithm} cannot learn its prior: choose `prior_scales=fixed` or `prior_scales=fan-in`")
    if isinstance(prior, WeightPrior) and (algorithm.takes_prior or algorithm is Algorithm.FIXED):
        return prior, kind
    if algorithm.takes_prior or (algorithm.is_mixture and prior is None):
        try:
            name = PriorName.GAUSSIAN if prior is None else str(prior)
            return build_weight_prior(name, 1.0 if scale is None else scale), kind
        except ValueError as error:
            raise UserError(str(error)) from None
    if prior is not None or scale is not None or scales is not None:
        given = f"prior_scale={scale:g}" if scale is not None else f"prior_scales={scales}"
        given = given if prior is None else f"prior={type(prior).__name__ if module else prior}"
        raise UserError(f"{algorithm} has a prior of its own ({OWN_PRIORS[algorithm]}): leave out `{given}`")
    return None, kind


def choose_weights(network: nn.Module, weights: Sequence[str]) -> Callable[[str], bool] | None:
    """Which parameters are random (``weights``), as a test of their names: all (``None``), those of the last layer, or by
    name or pattern.

    Raises:
        UserError: a name or pattern that is no parameter's.
    """
    if tuple(weights) == ("all",):
        return None
    names = [name for name, _ in network.named_parameters()]
    if tuple(weights) == ("last",):
        layer = names[-1].rpartition(".")[0] if names else None
        return lambda name: name.rpartition(".")[0] == layer
    if unknown := [pattern for pattern in weights if not fnmatch.filter(names, pattern)]:
        raise UserError(
            f"`weights={','.join(unknown)}` is no parameter of the network: choose all, last, or {', '.join(names)}"
        )
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in weights)


def check_weights(algorithm: Algorithm, weights: Sequence[str]) -> None:
    """Fail where a choice of random weights would count for nothing.

    Raises:
        UserError: a choice, for an algorithm that has its own.
    """
    own = ("last",) if algorithm is Algorithm.LAST_LAYER else ("all",)
    if algorithm in OWN_WEIGHTS and tuple(weights) not in (("all",), own):
        raise UserError(f"{algorithm} {OWN_WEIGHTS[algorithm]}: leave out `weights={','.join(weights)}`")


def check_chains(model: BayesianNetwork, most_weights: int) -> None:
    """Fail where NUTS could not sample, or would not in hours.

    Raises:
        UserError: more than ``most_weights`` weights, or a prior or noise that is learned.
    """
    if model.num_weights > most_weights:
        raise UserError(
            f"nuts is for at most {most_weights} weights, this network has {model.num_weights}: choose a smaller one"
        )
    if any(parameter.requires_grad for parameter in model.prior.parameters()):
        raise UserError("nuts needs a fixed prior, as the posterior is of weights alone: give `prior_scale=...`")
    if any(parameter.requires_grad for parameter in model.likelihood.parameters()):
        raise UserError("nuts needs a known noise, as the posterior is of weights alone: give `noise=...`")
