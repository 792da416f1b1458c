"""One algorithm fitted to one network and data set: training, sampling or approximation, kept in a run folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.items import LabelledItems
from data.seeding import mix_seed, seeded
from guides.low_rank import LowRankGuide
from guides.mean_field import MeanFieldGuide, PointGuide
from inference.bnn.algorithms import Algorithm, FitSettings, Plan
from inference.bnn.checks import check_chains, check_data, choose_weights
from inference.bnn.posterior import NetworkPosterior, WeightPosterior
from inference.bnn.posteriors.chains import MOST_WEIGHTS, ChainPosterior, sample_chains
from inference.bnn.posteriors.laplace import check_laplace, laplace_posterior
from inference.bnn.posteriors.swag import SwagCollection, check_swag
from inference.bnn.training import BnnTraining
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_state, load_tensors, save_tensors
from inference.runs.training import Loop, train
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import GaussianWeightPrior, MixtureWeightPrior, ScaledWeightPrior, WeightPrior
from models.bayesian.weight_scales import PriorScales, WeightScales
from models.likelihoods import Likelihood


@dataclass(frozen=True)
class Recipe:
    """One algorithm at one β: all that a fit needs beside network and data.

    Args:
        algorithm, beta: what is fitted.
        likelihood: p(y given ŷ).
        prior: m(w), or what a mixture starts from; ``None``: N(0, I).
        prior_scales: scales of the prior's weights.
        settings: how it is fitted.
    """

    algorithm: Algorithm
    beta: float
    likelihood: Likelihood
    prior: WeightPrior | None = None
    prior_scales: PriorScales = PriorScales.FIXED
    settings: FitSettings = FitSettings()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Fit:
    """A fit of one algorithm at one β.

    Attributes:
        algorithm, beta: what it was fitted by.
        posterior: the weights' posterior, which predicts.
        rates: ``[K]``, KL(q_k ‖ m) against the prior or mixture each posterior was trained against, nats; NaN where there is
            none, as for points.
        seconds: it took to fit, in all sessions of a resumed run.
        warning: one line where standard deviations did not reach their optimum, else ``None``.
        settings: how it was fitted.
        item_shape: of the items it was fitted to, without the number of items.
        class_names: a name for each class; none for other targets.
        network: arguments of :func:`~models.networks.classifiers.build_network`, where the network was built by name.
    """

    algorithm: Algorithm
    beta: float
    posterior: NetworkPosterior
    rates: Tensor
    seconds: float | None = None
    warning: str | None = None
    settings: FitSettings = FitSettings()  # noqa: RUF009 (frozen)
    item_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    network: Mapping[str, Any] | None = None

    @property
    def rate_against(self) -> str | None:
        """What ``rates`` are against: ``"prior"``, ``"mixture"``, or ``None`` where there is none."""
        if bool(self.rates.isnan().any()):
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
) -> Fit:
    """Train one algorithm at one β in ``run``, or read it back where it is finished.

    Args:
        network: untrained.
        watch: items whose accuracy and NLL are logged after each epoch.
        stage: name of its checkpoints and logs.
    """
    stage = stage or stage_name(recipe.algorithm, recipe.beta)
    job = Job(prepare(network, data, recipe, watch=watch), data, recipe, loop, run, stage)
    with nullcontext() if job.file.exists() else run.timed(stage), seeded(recipe.settings.seed):
        posterior, rates = FITTED_BY.get(recipe.algorithm, by_training)(job)
    warning = None if recipe.algorithm is Algorithm.NUTS else job.module.scale_warning()
    about = {"settings": recipe.settings, "item_shape": tuple(data.items.shape[1:]), "class_names": data.class_names}
    return Fit(recipe.algorithm, recipe.beta, posterior, rates, run.seconds().get(stage), warning, **about)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Job:
    """What is fitted, and where it is kept.

    Attributes:
        module: model, and training where there is one.
        data: training items.
        recipe, loop, run, stage: see :func:`fit_posterior`.
    """

    module: BnnTraining
    data: LabelledItems
    recipe: Recipe
    loop: Loop
    run: RunFolder
    stage: str

    @property
    def file(self) -> Path:
        """What is there once it is finished."""
        return self.run.checkpoints / f"{self.stage}.safetensors"

    def keep(self, state: dict[str, Tensor]) -> None:
        """Write the file from ``state``."""
        save_tensors(self.file, state, {"algorithm": self.recipe.algorithm.value, "beta": self.recipe.beta})


def by_training(job: Job) -> tuple[WeightPosterior, Tensor]:
    """Posterior and rates (NaN for points) by our objective."""
    module = job.module
    if not job.file.exists():
        plan, rate = module.plan, module.rate_option
        train(module, job.loop, job.run, job.stage, epochs=plan.total_epochs, every=plan.sparse, rate_option=rate)
        job.keep(module.state_dict())
    load_state(module, job.file)
    points = job.recipe.algorithm.trains_points
    return module.eval().posterior(), torch.full_like(module.rates, torch.nan) if points else module.rates


def by_laplace(job: Job) -> tuple[NetworkPosterior, Tensor]:
    """Laplace's approximation around what training found."""
    settings, (points, rates) = job.recipe.settings, by_training(job)
    last = settings.weights == ("last",)
    return laplace_posterior(points, job.data, structure=settings.structure, last=last, tune=settings.tune_prior), rates


def by_swag(job: Job) -> tuple[NetworkPosterior, Tensor]:
    """The Gaussian of SGD's iterates around what training found, and its rate, which nothing has minimised."""
    by_training(replace(job, stage=start_of(job.stage)))
    posterior, _ = by_training(replace(job, module=SwagCollection(job.module)))
    return posterior, posterior.rate()


def by_chains(job: Job) -> tuple[NetworkPosterior, Tensor]:
    """Draws of NUTS."""
    settings, model = job.recipe.settings, job.module.objective.model
    if not job.file.exists():
        sizes = {"draws": settings.draws, "warmup": settings.warmup}
        start = model.initial_weights(settings.chains)
        chains = sample_chains(model, job.data, start, **sizes, seed=settings.seed, progress=job.loop.progress)
        job.keep({"chains": chains.chains})
    posterior = ChainPosterior(model, load_tensors(job.file)[0]["chains"])
    return posterior, torch.full((settings.chains,), torch.nan)


FITTED_BY: dict[Algorithm, Callable[[Job], tuple[NetworkPosterior, Tensor]]] = {
    Algorithm.LAPLACE: by_laplace,
    Algorithm.SWAG: by_swag,
    Algorithm.NUTS: by_chains,
}
"""How algorithms are fitted that are not, or not only, trained."""


def stage_name(algorithm: Algorithm, beta: float) -> str:
    """Of an algorithm's final training at its β."""
    return f"{algorithm}-beta{beta:g}"


def start_of(stage: str) -> str:
    """The name of the training that comes before ``stage``, where there are two."""
    return f"{stage}-start"


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
    except ValueError as error:  # such as batch norm with several posteriors
        raise UserError(f"{recipe.algorithm}: {error}") from None
    if recipe.algorithm is Algorithm.NUTS:
        check_chains(objective.model, MOST_WEIGHTS)
    if recipe.algorithm is Algorithm.LAPLACE:
        check_laplace(objective.model, settings.weights)
    if recipe.algorithm is Algorithm.SWAG:
        check_swag(objective.model, settings.rank)
    return BnnTraining(objective, data, plan, start, settings=settings, items_per_epoch=items, watch=watch)


def build_objective(network: nn.Module, recipe: Recipe, plan: Plan, *, num_data: int) -> tuple[RateDistortionModule, Tensor]:
    """Model, guide and objective for the posteriors that train at once, and ``[K, P]`` initial means for all.

    Args:
        num_data: items of the data set, or bootstrap sample, that batches come from.

    Raises:
        ValueError: a network that several posteriors cannot share, a prior over another number of weights, or a rank above it.
    """
    prior = copy.deepcopy(recipe.prior) if recipe.prior is not None else GaussianWeightPrior()
    likelihood = copy.deepcopy(recipe.likelihood)
    settings, algorithm = recipe.settings, recipe.algorithm
    random = choose_weights(network, ("last",) if algorithm is Algorithm.LAST_LAYER else settings.weights)
    random = random if algorithm.random_subset else None
    model = BayesianNetwork(network, prior, likelihood, num_data=num_data, posteriors=plan.at_once, random=random)
    if algorithm in (Algorithm.LOW_RANK, Algorithm.SWAG) and settings.rank > max(model.num_weights, FitSettings.rank):
        raise ValueError(f"`rank={settings.rank}` is more than the {model.num_weights} weights that are random: choose fewer")
    units = WeightScales(model.shapes, PriorScales.FAN_IN)
    if recipe.prior_scales is not PriorScales.FIXED:
        units = WeightScales(model.shapes, recipe.prior_scales, plan.at_once)
        model.prior = ScaledWeightPrior(prior, units)
    if recipe.algorithm.is_mixture:
        model.prior = MixtureWeightPrior.standard(plan.posteriors, model.num_weights, model.prior)
    try:
        model.prior(model.num_weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the prior does not fit the network's {model.num_weights} weights: {reason}") from None
    start = model.initial_weights(plan.posteriors)
    first = start[: plan.at_once]
    many = settings.particles > 1
    plates = 2 if many else math.inf
    elbo = RateDistortionELBO(  # a prior of one's own may have no KL that is known
        beta=recipe.beta, monte_carlo=True, num_particles=settings.particles, vectorize_particles=many, max_plate_nesting=plates
    )
    return elbo(model, build_guide(recipe, first, units)), start


def build_guide(recipe: Recipe, start: Tensor, units: WeightScales) -> MeanFieldGuide | PointGuide:
    """The algorithm's guide, at ``[K, P]`` initial means, with parameters in these units."""
    settings = recipe.settings
    if recipe.algorithm.trains_points:
        return PointGuide(start, units)
    if recipe.algorithm is Algorithm.LOW_RANK:
        return LowRankGuide(start, settings.initial_scale, rank=settings.rank, scales=units)
    return MeanFieldGuide(start, settings.initial_scale, scales=units)
