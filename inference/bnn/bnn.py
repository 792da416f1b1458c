"""Fit a Bayesian neural network: ``BNN.fit(network, x, y)``."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from guides.mean_field import MeanFieldGuide, PointGuide
from inference.bnn.algorithms import Algorithm, FitSettings, Plan
from inference.bnn.checks import (
    check_data,
    choose_algorithm,
    choose_beta,
    choose_likelihood,
    choose_prior,
    likelihood_name,
    read_data,
)
from inference.bnn.posterior import NetworkPosterior
from inference.bnn.training import BnnTraining
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, save_tensors
from inference.runs.training import Loop, train
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, MixtureWeightPrior, WeightPrior
from models.likelihoods import Likelihood


@dataclass(frozen=True)
class Recipe:
    """One algorithm at one β: all that a fit needs beside network and data.

    Args:
        algorithm, beta: what is fitted.
        likelihood: p(y given ŷ).
        prior: m(w); ``None``: the algorithm's own.
        settings: how it is fitted.
    """

    algorithm: Algorithm
    beta: float
    likelihood: Likelihood
    prior: WeightPrior | None = None
    settings: FitSettings = FitSettings()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class BNN:
    """A fitted Bayesian neural network.

    Attributes:
        algorithm, beta: what it was fitted by.
        posterior: the weights' posterior, which predicts.
        rates: ``[K]``, KL(q_k ‖ m) against the prior or mixture each posterior was trained against, nats; NaN for points.
    """

    algorithm: Algorithm
    beta: float
    posterior: NetworkPosterior
    rates: Tensor

    @classmethod
    def fit(
        cls,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        algorithm: Algorithm | str = Algorithm.VANILLA,
        beta: float | None = None,
        prior: WeightPrior | str | None = None,
        prior_scale: float | None = None,
        likelihood: Likelihood | str | None = None,
        device: str = "auto",
        devices: int = 1,
        progress: bool = False,
        out: str | Path | None = None,
        **settings: Any,
    ) -> BNN:
        """Fit the weights' posterior to ``x`` and ``y``.

        Network, prior and likelihood are copied, not changed.

        Args:
            network: any module from ``[n, *item]`` to ``[n, outputs]``.
            x: ``[n, *item]``.
            y: ``[n]`` or ``[n, 1]``: classes or counts as integers, 0 and 1 of any type, or floats.
            algorithm: see :class:`~inference.bnn.algorithms.Algorithm`.
            beta: weight of the rate; 1 when not given. Vanilla has 1 and deterministic 0.
            prior: of vanilla, by name or as a module; a module is fixed-prior's too. The other algorithms have their own.
            prior_scale: of a prior by name; 1 when not given.
            likelihood: by name or as a module; categorical for integer ``y``, Gaussian for floats, when not given.
            device: auto, cpu or cuda.
            devices: processes to train with.
            progress: whether to show progress bars.
            out: run folder to keep; none is kept when not given.
            settings: fields of :class:`~inference.bnn.algorithms.FitSettings`.

        Raises:
            UserError: bad data or arguments, or a loss that is not finite.
        """
        if unknown := settings.keys() - (known := {field.name for field in fields(FitSettings)}):
            raise UserError(f"unknown argument {', '.join(sorted(unknown))}: choose {', '.join(sorted(known))}")
        chosen, way = FitSettings(**settings), choose_algorithm(algorithm)
        weight, m = choose_beta(way, beta), choose_prior(way, prior, prior_scale)
        observation = choose_likelihood(likelihood, y)
        data = read_data(x, y, observation)
        check_device(device)
        if out is not None and RunFolder(out).config.exists():
            raise UserError(f"{out} already holds a run: choose another `out`")
        recipe = Recipe(way, weight, observation, m, chosen)
        prepare(network, data, recipe)
        with tempfile.TemporaryDirectory() as scratch:
            described = {"algorithm": way.value, "beta": weight, "likelihood": likelihood_name(observation), **asdict(chosen)}
            run = RunFolder.create(out or Path(scratch) / "run", "bnn", yaml.safe_dump(described, sort_keys=False))
            return fit_posterior(network, data, recipe, loop=Loop(device, devices, progress=progress), run=run)

    @property
    def rate_against(self) -> str | None:
        """What ``rates`` are against: ``"prior"``, ``"mixture"``, or ``None`` for points, which have no rate."""
        if self.algorithm is Algorithm.DETERMINISTIC:
            return None
        return "mixture" if self.algorithm.is_mixture else "prior"


def fit_posterior(
    network: nn.Module,
    data: LabelledItems,
    recipe: Recipe,
    *,
    loop: Loop,
    run: RunFolder,
    watch: LabelledItems | None = None,
    stage: str | None = None,
) -> BNN:
    """Train one algorithm at one β in ``run``, or read it back where it is finished.

    Args:
        network: untrained.
        watch: items whose accuracy and NLL are logged after each epoch.
        stage: name of its checkpoints and logs.
    """
    algorithm, beta, seed = recipe.algorithm, recipe.beta, recipe.settings.seed
    stage = stage or stage_name(algorithm, beta)
    module = prepare(network, data, recipe, watch=watch)
    finished = run.checkpoints / f"{stage}.safetensors"
    if not finished.exists():
        with run.timed(stage), seeded(seed):
            train(module, loop, run, stage, epochs=module.plan.total_epochs, every=module.plan.sparse)
        save_tensors(finished, module.state_dict(), {"algorithm": algorithm.value, "beta": beta})
    load_state(module, finished)
    rates = module.rates if algorithm is not Algorithm.DETERMINISTIC else torch.full_like(module.rates, torch.nan)
    return BNN(algorithm, beta, module.eval().posterior(), rates)


def stage_name(algorithm: Algorithm, beta: float) -> str:
    """Of an algorithm's final training at its β."""
    return f"{algorithm}-beta{beta:g}"


def prepare(network: nn.Module, data: LabelledItems, recipe: Recipe, *, watch: LabelledItems | None = None) -> BnnTraining:
    """The training of one algorithm at one β, before its first step.

    Raises:
        UserError: data, network, likelihood, prior or settings that do not fit together.
    """
    settings = recipe.settings
    plan, items = settings.plan(recipe.algorithm), settings.items_per_epoch(recipe.algorithm, len(data))
    check_data(network, data, recipe.likelihood)
    try:
        with seeded(mix_seed(settings.seed)):
            objective, start = build_objective(network, recipe, plan, num_data=items)
    except ValueError as error:  # batch norm with several posteriors
        raise UserError(f"{recipe.algorithm}: {error}") from None
    return BnnTraining(objective, data, plan, start, settings=settings, items_per_epoch=items, watch=watch)


def build_objective(network: nn.Module, recipe: Recipe, plan: Plan, *, num_data: int) -> tuple[RateDistortionModule, Tensor]:
    """Model, guide and objective for the posteriors that train at once, and ``[K, P]`` initial means for all.

    Args:
        num_data: items of the data set, or bootstrap sample, that batches come from.

    Raises:
        ValueError: a network that several posteriors cannot share, or a prior over another number of weights.
    """
    prior = copy.deepcopy(recipe.prior) if recipe.prior is not None else GaussianWeightPrior()
    likelihood = copy.deepcopy(recipe.likelihood)
    model = BayesianNetwork(network, prior, likelihood, num_data=num_data, posteriors=plan.at_once)
    if recipe.algorithm.is_mixture:
        model.prior = MixtureWeightPrior.standard(plan.posteriors, model.num_weights)
    try:
        model.prior(model.num_weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the prior does not fit the network's {model.num_weights} weights: {reason}") from None
    start = model.initial_weights(plan.posteriors)
    first = start[: plan.at_once]
    point = recipe.algorithm is Algorithm.DETERMINISTIC
    guide = PointGuide(first) if point else MeanFieldGuide(first, recipe.settings.initial_scale)
    return RateDistortionELBO(beta=recipe.beta)(model, guide), start


def check_device(device: str) -> None:
    """Fail where there is no such device.

    Raises:
        UserError: an unknown name, or a GPU that is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is available to PyTorch: `device=cpu` or `device=auto` do without")
