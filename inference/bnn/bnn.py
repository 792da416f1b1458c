"""Fit a Bayesian neural network: ``BNN.fit(network, x, y)``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from guides.mean_field import MeanFieldGuide, PointGuide
from inference.bnn.options import Algorithm, BnnOptions, Plan
from inference.bnn.posterior import WeightPosterior
from inference.bnn.training import BnnTraining
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.runs.checks import check_items
from inference.runs.commands import options_to_yaml
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, save_tensors
from inference.runs.training import train
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, MixtureWeightPrior, WeightPrior, build_weight_prior
from models.likelihoods import LIKELIHOODS, CategoricalLikelihood, Likelihood, LikelihoodName


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
    posterior: WeightPosterior
    rates: Tensor

    @classmethod
    def fit(
        cls,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        algorithm: Algorithm | str = Algorithm.VANILLA,
        beta: float = 1.0,
        prior: WeightPrior | str | None = None,
        likelihood: Likelihood | str | None = None,
        **options: Any,
    ) -> BNN:
        """Fit the weights' posterior to ``x`` and ``y``.

        Args:
            network: any module from ``[n, *item]`` to ``[n, outputs]``.
            x: ``[n, *item]``.
            y: ``[n]``: classes as int64, or floats.
            algorithm: see :class:`~inference.bnn.options.Algorithm`.
            beta: weight of the rate; vanilla has 1 and deterministic 0 whatever is given.
            prior: of vanilla, by name or as a module; a module is fixed-prior's too.
            likelihood: by name or as a module; categorical for integer ``y``, Gaussian for floats, when not given.
            options: fields of :class:`~inference.bnn.options.BnnOptions`; ``out`` keeps the run folder.

        Raises:
            UserError: bad data or options, or a loss that is not finite.
        """
        names = {"prior": prior, "likelihood": likelihood}
        named = {key: value for key, value in names.items() if isinstance(value, str)}
        chosen = BnnOptions(**{"progress": False, **options, **named, "beta": beta})
        classes = () if y.is_floating_point() else tuple(map(str, range(int(y.max()) + 1)))
        data = LabelledItems(x, y, classes)
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(chosen.out or Path(scratch) / "run", "bnn", options_to_yaml(chosen))
            way = Algorithm(algorithm)
            own = {key: value for key, value in names.items() if not isinstance(value, str)}
            return fit_posterior(network, data, chosen, way, way.betas((beta,))[0], run, **own)  # type: ignore[arg-type]


def fit_posterior(
    network: nn.Module,
    data: LabelledItems,
    options: BnnOptions,
    algorithm: Algorithm,
    beta: float,
    run: RunFolder,
    *,
    prior: WeightPrior | None = None,
    likelihood: Likelihood | None = None,
    watch: LabelledItems | None = None,
    stage: str | None = None,
) -> BNN:
    """Train one algorithm at one β in ``run``, or read it back where it is finished.

    Args:
        network: untrained.
        watch: items whose accuracy and NLL are logged after each epoch.
        stage: name of its checkpoints and logs.
    """
    stage = stage or f"{algorithm}-beta{beta:g}"
    plan = options.plan(algorithm)
    likelihood = likelihood if likelihood is not None else choose_likelihood(options.likelihood, data.labels)
    size = options.bootstrap_size if algorithm.is_mixture and options.bootstrap_size else len(data)
    check_data(network, data, likelihood, size)
    try:
        with seeded(mix_seed(options.seed)):
            objective, start = build_objective(network, options, algorithm, beta, plan, size, prior, likelihood)
    except ValueError as error:  # batch norm with several posteriors
        raise UserError(f"{algorithm}: {error}") from None
    module = BnnTraining(
        objective,
        data,
        plan,
        start,
        initial_scale=options.initial_scale,
        bootstrap_size=size,
        batch=options.batch,
        learning_rate=options.learning_rate,
        scale_speed=options.scale_speed,
        watch=watch,
        seed=options.seed,
    )
    finished = run.checkpoints / f"{stage}.safetensors"
    if not finished.exists():
        with run.timed(stage), seeded(options.seed):
            train(module, options.loop, run, stage, epochs=plan.total_epochs, every=plan.sparse)
        save_tensors(finished, module.state_dict(), {"algorithm": algorithm.value, "beta": beta})
    load_state(module, finished)
    rates = module.rates if algorithm is not Algorithm.DETERMINISTIC else torch.full_like(module.rates, torch.nan)
    return BNN(algorithm, beta, module.eval().posterior(), rates)


def build_objective(
    network: nn.Module,
    options: BnnOptions,
    algorithm: Algorithm,
    beta: float,
    plan: Plan,
    num_data: int,
    prior: WeightPrior | None,
    likelihood: Likelihood,
) -> tuple[RateDistortionModule, Tensor]:
    """Model, guide and objective for the posteriors that train at once, and ``[K, P]`` initial means for all."""
    model = BayesianNetwork(network, None, likelihood, num_data=num_data, posteriors=plan.at_once)
    if algorithm.is_mixture:
        model.prior = MixtureWeightPrior.standard(plan.posteriors, model.num_weights)
    elif prior is not None:
        model.prior = prior
    elif algorithm is Algorithm.VANILLA:
        model.prior = build_weight_prior(options.prior, options.prior_scale)
    else:
        model.prior = GaussianWeightPrior()
    start = model.initial_weights(plan.posteriors)
    first = start[: plan.at_once]
    point = algorithm is Algorithm.DETERMINISTIC
    guide = PointGuide(first) if point else MeanFieldGuide(first, options.initial_scale)
    return RateDistortionELBO(beta=beta)(model, guide), start


def choose_likelihood(name: str | None, labels: Tensor) -> Likelihood:
    """By name, or by the targets: categorical for integers, Gaussian for floats."""
    kind = (
        LikelihoodName(name) if name else LikelihoodName.GAUSSIAN if labels.is_floating_point() else LikelihoodName.CATEGORICAL
    )
    return LIKELIHOODS[kind]()


def check_data(network: nn.Module, data: LabelledItems, likelihood: Likelihood, bootstrap_size: int) -> None:
    """Fail before any work.

    Raises:
        UserError: a bootstrap sample larger than the data, or what :func:`~inference.runs.checks.check_items` finds.
    """
    if bootstrap_size > len(data):
        raise UserError(f"bootstrap samples of {bootstrap_size} items from {len(data)}: n_b must not exceed n")
    check_items(network, data, classes=isinstance(likelihood, CategoricalLikelihood))
