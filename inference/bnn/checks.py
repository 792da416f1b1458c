"""What a Bayesian network's data, likelihood and prior must satisfy before any work; every error is one line."""

from __future__ import annotations

import copy
import fnmatch
import math
import pickle
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from data.errors import UserError
from data.inputs import as_items, as_tensor
from data.items import LabelledItems
from inference.bnn.algorithms import Algorithm
from inference.runs.checks import check_items
from models.bayesian.network import BayesianNetwork
from models.bayesian.own_prior import DistributionWeightPrior
from models.bayesian.weight_priors import PriorName, WeightPrior, build_weight_prior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import (
    LIKELIHOODS,
    CategoricalLikelihood,
    GaussianLikelihood,
    Likelihood,
    LikelihoodName,
    OwnLikelihood,
)
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


def read_data(x: Any, y: Any = None) -> LabelledItems:
    """Items and targets as one data set; see :func:`~data.inputs.as_items` for what ``x`` and ``y`` may be.

    Targets ``[n, 1]`` are read as ``[n]``; boolean targets as 0 and 1; several outputs are ``[n, d]``.

    Raises:
        UserError: no items, or other shapes.
    """
    if not isinstance(y, Tensor):
        data = as_items(x, y)
        items, y, names = data.items, data.labels, data.class_names
    else:
        items, names = as_tensor(x), ()
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if y.dim() not in (1, 2):
        raise UserError(f"y has shape {'×'.join(map(str, y.shape)) or '()'}: give one target per item, shape n, n×1 or n×d")
    if len(items) != len(y) or not len(items):
        raise UserError(f"{len(items)} items and {len(y)} targets: give one target per item, and one item at least")
    return LabelledItems(items, y if y.is_floating_point() else y.long(), names)


def with_classes(data: LabelledItems, likelihood: Likelihood) -> LabelledItems:
    """The same data; where targets are classes, these have names, 0, 1, … where nobody named them.

    Raises:
        UserError: real numbers, or several for each item, for classes; or names of classes for other targets.
    """
    if not isinstance(likelihood, CategoricalLikelihood):
        if named := [name for name in data.class_names if not name.isdecimal()]:
            raise UserError(
                f"{likelihood_name(likelihood)} targets are {likelihood.targets}, but y holds names, such as {named[0]}"
            )
        return LabelledItems(data.items, data.labels, ())
    if data.labels.is_floating_point():
        raise UserError(
            "categorical targets are classes 0, 1, …, but y holds real numbers: give integers, or `likelihood=gaussian`"
        )
    if data.labels.dim() != 1:
        raise UserError(f"y has shape n×{data.labels.shape[1]}: give one class per item, shape n or n×1")
    names = data.class_names or tuple(map(str, range(int(data.labels.max()) + 1)))
    return LabelledItems(data.items, data.labels, names)


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
    try:
        wrong = ~check_observation(likelihood, outputs, data.labels).check(likelihood.cast(data.labels, outputs))
    except NotImplementedError:  # a distribution of one's own that does not say what it can give
        return
    if bool(wrong.any()):
        first = data.labels[wrong][0].tolist()
        shown = ", ".join(f"{number:g}" for number in (first if isinstance(first, list) else [first]))
        raise UserError(
            f"{name} targets are {likelihood.targets}, but {int(wrong.sum())} of {len(data)} are not, such as {shown}"
        )


def check_observation(likelihood: Likelihood, outputs: Tensor, labels: Tensor) -> Any:
    """The support of p(y given ŷ), once its shapes are those of outputs and targets.

    Args:
        outputs: of a few items, ``[n, outputs]``.
        labels: of all, ``[N]`` or ``[N, d]``.

    Raises:
        UserError: a function that cannot take the outputs, or gives no distribution, or shapes that do not fit.
    """
    try:
        with torch.no_grad():
            observation = copy.deepcopy(likelihood).cpu()(outputs[None])
    except (RuntimeError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"`likelihood` cannot take outputs of shape 1×{'×'.join(map(str, outputs.shape))}: {reason}") from None
    if not isinstance(observation, Distribution):
        raise UserError(f"`likelihood` must give a Pyro distribution, not {type(observation).__name__}")
    if len(observation.batch_shape) != 2 or observation.batch_shape[1] not in (1, len(outputs)):
        shape, wanted = ("×".join(map(str, s)) or "()" for s in (observation.batch_shape, (1, len(outputs))))
        raise UserError(
            f"`likelihood` gives a distribution of batch_shape {shape} for {wanted} items: take outputs[..., 0], or end in "
            "`.to_event(1)` where y is n×d"
        )
    if observation.event_shape != labels.shape[1:]:
        given, wanted = ("×".join(map(str, ("n", *s))) for s in (labels.shape[1:], observation.event_shape))
        raise UserError(
            f"y has shape {given}, but the {likelihood_name(likelihood)} likelihood is of targets of shape {wanted}"
        )
    return observation.support


def likelihood_name(likelihood: Likelihood) -> str:
    """Its :class:`~models.likelihoods.LikelihoodName`, or its class where it has none."""
    return next((name.value for name, kind in LIKELIHOODS.items() if type(likelihood) is kind), type(likelihood).__name__)


def choose_likelihood(given: Any, targets: Tensor, noise: Any = None) -> Likelihood:
    """As given, a function as :class:`~models.likelihoods.OwnLikelihood`; by name; or by the targets: categorical for
    integers, Gaussian for floats, of as many outputs as there are targets per item, with known or learned ``noise``.

    Raises:
        UserError: an unknown name, or noise that is not positive, or of another likelihood.
    """
    if isinstance(given, Likelihood) or (callable(given) and not isinstance(given, str)):
        if noise is not None:
            raise UserError(f"`noise={noise}` is of a likelihood by name: a module or function has its own")
        return given if isinstance(given, Likelihood) else OwnLikelihood(given)
    if given is None:
        real = isinstance(targets, Tensor) and targets.is_floating_point()
        given = LikelihoodName.GAUSSIAN if real else LikelihoodName.CATEGORICAL
    if given not in list(LikelihoodName):
        raise UserError(f"unknown likelihood {given!r}: choose {', '.join(LikelihoodName)}, or give a function")
    outputs = targets.shape[1] if isinstance(targets, Tensor) and targets.dim() > 1 else 1
    known = None if noise is None else check_noise(noise, outputs)
    if given != LikelihoodName.GAUSSIAN:
        if known is not None:
            raise UserError(f"`noise={noise}` is of gaussian targets, and the likelihood is {given}: leave it out")
        return LIKELIHOODS[LikelihoodName(given)]()
    return GaussianLikelihood(outputs=outputs) if known is None else GaussianLikelihood(known, outputs=outputs, learned=False)


def check_noise(noise: Any, outputs: int) -> float | Tensor:
    """The ``noise``, standard deviation of the targets: one number, or one for each of several outputs, ``[outputs]``.

    Raises:
        UserError: no such numbers, or numbers that are not positive.
    """
    if isinstance(noise, Real):
        check_positive("noise", noise)  # type: ignore[arg-type]
        return float(noise)
    shown = f"`noise={' '.join(repr(noise).split())}` must be a positive number"
    if getattr(noise, "ndim", 1) != 1 or isinstance(noise, str):
        raise UserError(shown)
    try:
        numbers = torch.as_tensor(noise, dtype=torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{shown}, or one for each output") from None
    if numbers.shape != (outputs,) or not bool((numbers > 0).all()) or not bool(numbers.isfinite().all()):
        raise UserError(f"{shown}, or {outputs} of them, one for each output")
    return numbers if outputs > 1 else numbers[0]


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


def as_module(prior: Distribution) -> DistributionWeightPrior:
    """A distribution as a prior over weights.

    Raises:
        UserError: it cannot be one.
    """
    try:
        return DistributionWeightPrior(prior)
    except ValueError as error:
        raise UserError(f"`prior`: {error}") from None


def choose_prior(
    algorithm: Algorithm,
    prior: WeightPrior | Distribution | str | None = None,
    scale: float | None = None,
    scales: PriorScales | str | None = None,
) -> tuple[WeightPrior | None, PriorScales]:
    """The prior and its scales: of algorithms that take one; of a mixture, which starts there; as a module or a distribution
    of PyTorch or Pyro (:class:`~models.bayesian.own_prior.DistributionWeightPrior`), of fixed-prior too.

    Args:
        prior: Gaussian when not given; ``None`` is returned where the algorithm has its own.
        scale: its standard deviation or scale, in units of 1/√fan-in unless the ``scales`` are fixed; 1 when not given.
        scales: learned for each layer when not given, but fixed where a ``scale`` or a module is, or where they cannot be
            learned.

    Raises:
        UserError: an unknown name, a scale that is not positive, or a prior for an algorithm that has its own.
    """
    shown = prior if isinstance(prior, str) else type(prior).__name__
    prior = as_module(prior) if isinstance(prior, Distribution) else prior
    module = isinstance(prior, WeightPrior)
    check_positive("prior_scale", scale)
    if scales is not None and scales not in list(PriorScales):
        raise UserError(f"unknown prior_scales {scales!r}: choose {', '.join(PriorScales)}")
    if module and (scale is not None or scales is not None):
        given = f"prior_scale={scale:g}" if scale is not None else f"prior_scales={scales}"
        raise UserError(f"`{given}` is of a prior by name: a module or distribution has its own")
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
        given = given if prior is None else f"prior={shown}"
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


def check_sent(**parts: Any) -> None:
    """Fail where one of the ``parts``, arguments by name, cannot be sent to other processes to train with.

    Raises:
        UserError: this, as of a lambda.
    """
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"`{name}` cannot be sent to other processes ({reason}): define it at the top of a module, or `devices=1`"
            ) from None


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
