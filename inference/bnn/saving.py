"""A fitted network as one file: posterior, likelihood, prior, and what gives them meaning, without the architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from inference.bnn.algorithms import Algorithm, FitSettings
from inference.bnn.checks import likelihood_name
from inference.bnn.fitting import Fit
from inference.bnn.posterior import NetworkPosterior, WeightPosterior
from inference.bnn.posteriors.chains import ChainPosterior
from inference.bnn.posteriors.laplace import LaplacePosterior
from inference.runs.files import writing
from inference.runs.tensors import load_tensors, save_tensors
from models.bayesian import own_prior
from models.bayesian.network import BayesianNetwork
from models.bayesian.own_prior import DistributionWeightPrior
from models.bayesian.weight_priors import (
    GaussianWeightPrior,
    LaplaceWeightPrior,
    MixtureWeightPrior,
    ScaledWeightPrior,
    ScaleMixtureWeightPrior,
    SpikeAndSlabWeightPrior,
    WeightPrior,
)
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.likelihoods import LIKELIHOODS, GaussianLikelihood, Likelihood, LikelihoodName
from models.networks.classifiers import build_network

FORMAT = "sibyl-bnn-1"
PARTS = ("loc", "log_scale", "factor")  # of a posterior; points have no scale, independent weights no factor
PLAIN_PRIORS: dict[str, Any] = {
    kind.__name__: kind for kind in (GaussianWeightPrior, LaplaceWeightPrior, ScaleMixtureWeightPrior, SpikeAndSlabWeightPrior)
}

Tensors = dict[str, Tensor]


def write_fit(path: Path, fit: Fit) -> Path:
    """Write a fit to ``path``, atomically.

    Raises:
        UserError: another suffix than .safetensors, or a place that cannot be written to.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"`path={path}` must end in .safetensors, which is what it will be")
    model, tensors = fit.posterior.model, {"rates": fit.rates}
    described = {
        "format": FORMAT,
        "algorithm": fit.algorithm.value,
        "beta": fit.beta,
        "posterior": describe_posterior(fit.posterior, tensors),
        "weights": {name: list(shape) for name, shape in model.shapes.items()},
        "model": {"posteriors": model.posteriors, "num_data": model.num_data},
        "estimators": {"linear": model.linear.value, "convolution": model.convolution.value},
        "likelihood": describe_likelihood(model.likelihood),
        "prior": describe_prior(model.prior, tensors, "prior."),
        "settings": asdict(fit.settings),
        "item_shape": fit.item_shape,
        "class_names": fit.class_names,
        "network": fit.network,
        "seconds": fit.seconds,
        "warning": fit.warning,
    }
    kept = {name: value for name, value in model.network.state_dict().items() if name not in model.shapes}
    tensors |= prefixed("network.", kept) | prefixed("likelihood.", model.likelihood.state_dict())
    with writing(path):
        return save_tensors(path, tensors, described)


def read_fit(
    path: Path, network: nn.Module | None = None, *, prior: WeightPrior | None = None, likelihood: Likelihood | None = None
) -> Fit:
    """Read what :func:`write_fit` wrote; the numbers are those of the file, in its type and on the CPU.

    Args:
        path: the file.
        network: of the architecture that was fitted; the file's own where it was built by name.
        prior, likelihood: where these were of one's own; see :func:`build_prior`.

    Raises:
        UserError: a damaged file, one of something else, another network, or a part that only the user has.
    """
    tensors, described = load_tensors(path)
    if described.get("format") != FORMAT:
        raise UserError(f"{path} holds no fitted BNN: give a file that BNN.save wrote, or a run folder")
    try:
        return build_fit(path, tensors, described, network, prior, likelihood)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: it lacks {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def build_fit(
    path: Path,
    tensors: Tensors,
    described: dict[str, Any],
    network: nn.Module | None,
    prior: WeightPrior | None,
    likelihood: Likelihood | None,
) -> Fit:
    """The fit of a file.

    Args:
        path: of the file, for messages.
        tensors, described: what it holds, see :func:`write_fit`.
        network, prior, likelihood: see :func:`read_fit`.

    Raises:
        UserError: another network, or a part that only the user has.
    """
    network = network if network is not None else named_network(path, described)
    check_network(path, network, described["weights"])
    shapes = {name: torch.Size(shape) for name, shape in described["weights"].items()}
    own = part_of(tensors, "likelihood.")
    model = BayesianNetwork(
        network,
        build_prior(path, described["prior"], part_of(tensors, "prior."), shapes, prior),
        build_likelihood(path, described["likelihood"], own, likelihood),
        random=shapes.__contains__,
        **described["model"],
        **described["estimators"],
    )
    others = {name: value for name, value in model.network.state_dict().items() if name not in shapes}
    put(path, "network", model.network, part_of(tensors, "network."), others)
    posterior = build_posterior(described["posterior"], tensors, model.eval())
    model.to(next(iter(part_of(tensors, "posterior.").values())).dtype)
    return Fit(
        Algorithm(described["algorithm"]),
        described["beta"],
        posterior,
        tensors["rates"],
        described["seconds"],
        described["warning"],
        FitSettings(**described["settings"]),
        None if described["item_shape"] is None else tuple(described["item_shape"]),
        tuple(described["class_names"]),
        described["network"],
    )


def named_network(path: Path, described: Mapping[str, Any]) -> nn.Module:
    """The network of a run, which was built by name, from the ``network`` that a file has ``described``.

    Raises:
        UserError: it was one of the user's own.
    """
    if described["network"] is None:
        raise UserError(f"{path} was fitted to a network of your own: give `network`, of the same architecture")
    try:
        arguments = dict(described["network"])
        return build_network(arguments.pop("name"), tuple(arguments.pop("item_shape")), **arguments)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def check_network(path: Path, network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Fail where a network is not of the architecture that was fitted, whose random ``weights`` had these names and shapes.

    Raises:
        UserError: it lacks a parameter, or has one of another shape.
    """
    found = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    for name, shape in weights.items():
        if found.get(name) != shape:
            has = "×".join(map(str, found[name])) or "()" if name in found else "none"
            wanted = "×".join(map(str, shape)) or "()"
            raise UserError(f"{path} belongs to another network: its parameter {name} is {wanted}, `network` has {has}")
    if [name for name in found if name in weights] != list(weights):
        raise UserError(f"{path} belongs to another network: the parameters stand in another order")


def describe_posterior(posterior: NetworkPosterior, tensors: Tensors) -> dict[str, Any]:
    """What a posterior is, with its numbers put into ``tensors``.

    Raises:
        UserError: a kind that cannot be saved.
    """
    if isinstance(posterior, ChainPosterior):
        tensors["posterior.chains"] = posterior.chains
        return {"kind": "chains"}
    if isinstance(posterior, LaplacePosterior):
        tensors |= {"posterior.loc": posterior.loc, "posterior.evidences": posterior.evidences}
        for k, blocks in enumerate(posterior.scales):
            for i, block in enumerate(blocks):
                tensors |= {f"posterior.scale.{k}.{i}.{j}": part for j, part in enumerate(block)}
        sizes = [[len(block) for block in blocks] for blocks in posterior.scales]
        described = {"kind": "laplace", "scales": sizes, "noise": str(posterior.noise).removeprefix("torch.")}
    elif isinstance(posterior, WeightPosterior):
        given = {name: getattr(posterior, name) for name in PARTS}
        tensors |= {f"posterior.{name}": value for name, value in given.items() if value is not None}
        described = {"kind": "weights", "parts": [name for name, value in given.items() if value is not None]}
    else:
        raise UserError(f"a {type(posterior).__name__} cannot be saved")
    if posterior.own_likelihood is not None:
        tensors |= prefixed("own_likelihood.", posterior.own_likelihood.state_dict())
    return described | {"own_likelihood": posterior.own_likelihood is not None}


def build_posterior(described: Mapping[str, Any], tensors: Tensors, model: BayesianNetwork) -> NetworkPosterior:
    """The posterior that :func:`describe_posterior` described."""
    numbers = part_of(tensors, "posterior.")
    if described["kind"] == "chains":
        return ChainPosterior(model, numbers["chains"])
    likelihood = None
    if described["own_likelihood"]:
        likelihood = copy.deepcopy(model.likelihood).copies(len(numbers["loc"])).requires_grad_(False)
        set_numbers(likelihood, part_of(tensors, "own_likelihood."))
    if described["kind"] == "weights":
        rest = (numbers[name] if name in described["parts"] else None for name in PARTS[1:])
        return WeightPosterior(model, numbers["loc"], *rest, own_likelihood=likelihood)
    scales = tuple(
        tuple(tuple(numbers[f"scale.{k}.{i}.{j}"] for j in range(size)) for i, size in enumerate(sizes))
        for k, sizes in enumerate(described["scales"])
    )
    noise = getattr(torch, described["noise"])
    return LaplacePosterior(model, numbers["loc"], scales, numbers["evidences"], noise, own_likelihood=likelihood)


def describe_likelihood(likelihood: Likelihood) -> dict[str, Any]:
    """What a likelihood is; its numbers are its state dict."""
    if type(likelihood) not in LIKELIHOODS.values():
        return {"own": likelihood_name(likelihood)}
    learned = isinstance(likelihood, GaussianLikelihood) and isinstance(likelihood.log_noise, nn.Parameter)
    return {"name": likelihood_name(likelihood), "outputs": likelihood.outputs, "learned": learned}


def build_likelihood(path: Path, described: Mapping[str, Any], numbers: Tensors, given: Likelihood | None) -> Likelihood:
    """The likelihood that :func:`describe_likelihood` described.

    Args:
        path: of the file, for messages.
        described: see there.
        numbers: its state dict.
        given: by the user, where it was of the user's own.

    Raises:
        UserError: it was, and is not given.
    """
    if "own" in described:
        if given is None:
            raise UserError(f"{path} was fitted with a likelihood of your own ({described['own']}): give `likelihood`")
        built = copy.deepcopy(given)
        put(path, "likelihood", built, numbers, None)
        return built
    kind = LIKELIHOODS[LikelihoodName(described["name"])]
    if kind is not GaussianLikelihood:
        return kind()
    noise = numbers["log_noise"].exp()
    built = GaussianLikelihood(noise, outputs=described["outputs"], learned=described["learned"])
    set_numbers(built, numbers)
    return built


def describe_prior(prior: WeightPrior, tensors: Tensors, prefix: str) -> dict[str, Any]:
    """What a prior is, with its numbers put into ``tensors`` by names that start with ``prefix``."""
    if isinstance(prior, ScaledWeightPrior):
        tensors |= prefixed(f"{prefix}scales.", prior.scales.state_dict())
        posteriors = len(prior.scales.log_scale) if prior.scales.batch_shape else 1
        scales = {"kind": prior.scales.kind.value, "posteriors": posteriors}
        return {"kind": "scaled", "scales": scales, "base": describe_prior(prior.base, tensors, f"{prefix}base.")}
    if isinstance(prior, MixtureWeightPrior):
        tensors |= {f"{prefix}loc": prior.loc, f"{prefix}log_scale": prior.log_scale}
        start = None if prior.start is None else describe_prior(prior.start, tensors, f"{prefix}start.")
        return {"kind": "mixture", "kl": prior.kl, "start": start}
    if isinstance(prior, DistributionWeightPrior):
        numbers: Tensors = {}
        if (described := own_prior.describe(prior.distribution(), numbers)) is not None:
            tensors |= prefixed(prefix, numbers)
            return {"kind": "distribution", "distribution": described}
    tensors |= prefixed(prefix, prior.state_dict())
    if type(prior) in PLAIN_PRIORS.values():
        return {"kind": type(prior).__name__, "kl": getattr(prior, "kl", None)}
    return {"kind": "own", "own": type(prior).__name__}


def build_prior(
    path: Path, described: Mapping[str, Any], numbers: Tensors, shapes: Mapping[str, torch.Size], given: WeightPrior | None
) -> WeightPrior:
    """The prior that :func:`describe_prior` described.

    Args:
        path: of the file, for messages.
        described: see there.
        numbers: by their names without the prefix.
        shapes: of the random parameters.
        given: by the user, where it was a module of the user's own, or a distribution that its arguments do not say all of.

    Raises:
        UserError: it was, and is not given.
    """
    kind = described["kind"]
    if kind == "scaled":
        base = build_prior(path, described["base"], part_of(numbers, "base."), shapes, given)
        scales = WeightScales(shapes, PriorScales(described["scales"]["kind"]), described["scales"]["posteriors"])
        set_numbers(scales, part_of(numbers, "scales."))
        return ScaledWeightPrior(base, scales)
    if kind == "mixture":
        start = described["start"] and build_prior(path, described["start"], part_of(numbers, "start."), shapes, given)
        mixture = MixtureWeightPrior(numbers["loc"], numbers["log_scale"], kl=described["kl"], start=start)
        mixture.begun = True
        return mixture
    if kind == "distribution":
        return DistributionWeightPrior(own_prior.from_description(described["distribution"], numbers))
    if kind == "own":
        if given is None:
            raise UserError(f"{path} was fitted with a prior of your own ({described['own']}): give `prior`")
        built = copy.deepcopy(given)
        put(path, "prior", built, numbers, None)
        return built
    plain = PLAIN_PRIORS[kind]() if described["kl"] is None else PLAIN_PRIORS[kind](kl=described["kl"])
    set_numbers(plain, numbers)
    return plain


def put(path: Path, argument: str, module: nn.Module, numbers: Tensors, expected: Mapping[str, Tensor] | None) -> None:
    """Give a module of the user's a file's numbers.

    Args:
        path: of the file, for messages.
        argument: what the module is called there.
        module: changed in place.
        numbers: name -> tensor.
        expected: what of its state dict the file must have; all when ``None``.

    Raises:
        UserError: the file has others.
    """
    wanted = {name: value.shape for name, value in (module.state_dict() if expected is None else expected).items()}
    found = {name: value.shape for name, value in numbers.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        shown = ["×".join(map(str, where[wrong[0]])) or "()" if wrong[0] in where else "none" for where in (found, wanted)]
        raise UserError(f"{path} belongs to another {argument}: its {wrong[0]} is {shown[0]}, `{argument}` has {shown[1]}")
    set_numbers(module, numbers)


def set_numbers(module: nn.Module, numbers: Tensors) -> None:
    """Put tensors in place of a module's parameters and buffers, whatever their shape and type were."""
    for name, value in numbers.items():
        owner, _, last = name.rpartition(".")
        part = module.get_submodule(owner)
        if last in part._parameters:
            part._parameters[last] = nn.Parameter(value, requires_grad=value.is_floating_point())
        else:
            part._buffers[last] = value


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors by longer names, with ``prefix`` before each."""
    return {prefix + name: value for name, value in tensors.items()}


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Those of the ``tensors`` whose names start with ``prefix``, by what follows."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
