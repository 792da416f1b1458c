"""All checks of a run of ``svi_bnn``: calibration of its algorithms on simulated data sets, NUTS, coverage, calibration."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.catalogue import load_supervised
from data.errors import UserError
from data.items import SupervisedData
from inference.bnn.algorithms import Algorithm
from inference.bnn.comparison import agree
from inference.bnn.fit import Problem, make_problem
from inference.bnn.fitting import Fit, Recipe, fit_posterior, stage_name
from inference.bnn.options import BnnOptions
from inference.bnn.posterior import NetworkPosterior
from inference.bnn.posteriors.chains import MOST_WEIGHTS, ChainPosterior, sample_chains
from inference.bnn.side_by_side import fit_side_by_side
from inference.diagnostics.calibration import Calibration
from inference.diagnostics.files import examine_files
from inference.diagnostics.findings import Diagnosis, Finding
from inference.diagnostics.networks import DRAWS, calibrate_networks
from inference.diagnostics.predictive_kl import predictive_kl
from inference.runs.folder import RunFolder
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import ScaledWeightPrior
from models.bayesian.weight_scales import PriorScales
from models.likelihoods import GaussianLikelihood, Likelihood

PLACES = 5  # inputs at which simulated functions are looked at
MOST_WORK = 10_000_000_000  # weights × items × steps × data sets that are trained: about a minute and a half
MOST_NUMBERS = 50_000_000  # of the inputs of all data sets: 200 MB
FEWEST = 50  # data sets that tell anything
KL_DRAWS, KL_ITEMS = 400, 100


@dataclass(frozen=True)
class Fitted:
    """An algorithm of a run.

    Attributes:
        algorithm, beta: which.
        recipe: how it was fitted.
        bnn: what came of it; ``None`` where it is no approximation of a posterior that can be simulated or sampled.
        excluded: why, in words; empty where it is one.
    """

    algorithm: Algorithm
    beta: float
    recipe: Recipe
    bnn: Fit | None
    excluded: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return self.algorithm.value

    def held(self) -> Recipe:
        """The recipe with prior and noise known, at what the run learned where it learned them."""
        assert self.bnn is not None
        model = self.bnn.posterior.model
        prior = copy.deepcopy(model.prior).requires_grad_(False)
        if isinstance(prior, ScaledWeightPrior):
            prior.scales.hold(0)  # one network's: those of several would mix units that do not correspond
        return replace(self.recipe, prior=prior, prior_scales=PriorScales.FIXED, likelihood=known_likelihood(model.likelihood))

    def model(self, problem: Problem) -> BayesianNetwork:
        """The program of one network under :meth:`held`."""
        recipe = self.held()
        return BayesianNetwork(problem.network, recipe.prior, recipe.likelihood).eval()


def diagnose_networks(run: RunFolder, options: BnnOptions, *, simulations: int, nuts: bool) -> Diagnosis:
    """Every algorithm of a run.

    Args:
        run: a finished run.
        options: its own.
        simulations: data sets of calibration.
        nuts: whether NUTS samples where the run did not.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    findings = {finding.name: finding for finding in examine_files(sorted(run.posteriors.glob("*.nc")))}
    try:
        data = load_supervised(options.data, options.root, image_size=options.image_size, seed=options.seed)
    except UserError as error:
        return Diagnosis(list(findings.values()), [f"SBC and NUTS: not run, for the run's data are not there: {error}"])
    problem = make_problem(options, data)
    rows = run.results().get("results", [])
    records = {row["algorithm"]: row for row in rows if row.get("split") == "test" and row.get("algorithm") in list(Algorithm)}
    fitted = [load_fit(run, options, problem, Algorithm(name), record["beta"]) for name, record in records.items()]
    for one in fitted:
        findings.setdefault(one.name, Finding(one.name))
    remarks = [held_words(fitted), *(f"{one.name}: {one.bnn.warning}" for one in fitted if one.bnn and one.bnn.warning)]
    for one in fitted:
        if one.bnn is not None and not (reason := too_large(one, problem, simulations)):
            print(f"fitting {one.name} to {simulations} simulated data sets side by side ...")
            found = calibrate_fit(one, problem, data, options, simulations)
            findings[one.name] = replace(findings[one.name], calibration=found)
        elif one.bnn is not None:
            remarks.append(f"SBC: not of {one.name}: {reason}")
    if excluded := [f"{one.name} ({one.excluded})" for one in fitted if one.excluded]:
        remarks.append(f"SBC and NUTS are of approximations of a posterior under a prior: not of {', '.join(excluded)}")
    if Algorithm.NUTS in records:
        findings |= {name: with_record(findings[name], record) for name, record in records.items() if name in findings}
    elif nuts:
        findings, said = beside_chains(findings, fitted, problem, data, options)
        remarks += said
    elif small := [one for one in fitted if one.bnn is not None and one.model(problem).num_weights <= MOST_WEIGHTS]:
        names = ", ".join(one.name for one in small)
        remarks.append(f"NUTS: not run; --nuts true samples the posterior that {names} approximates; takes minutes")
    else:
        remarks.append(f"NUTS: not of networks with more than {MOST_WEIGHTS} weights")
    return Diagnosis(list(findings.values()), [remark for remark in remarks if remark])


def load_fit(run: RunFolder, options: BnnOptions, problem: Problem, algorithm: Algorithm, beta: float) -> Fitted:
    """An algorithm of a finished run.

    Raises:
        UserError: its checkpoint is missing.
    """
    recipe = problem.recipe(algorithm, beta, options.fit)
    if reason := excluded(recipe):
        return Fitted(algorithm, beta, recipe, None, reason)
    path = run.checkpoints / f"{stage_name(algorithm, beta)}.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing: the run is not finished or was moved in part, so run it again")
    bnn = fit_posterior(problem.network, problem.train, recipe, loop=options.loop, run=run)
    return Fitted(algorithm, beta, recipe, bnn)


def excluded(recipe: Recipe) -> str:
    """Why an algorithm cannot be fitted to simulated data sets side by side; empty where it can."""
    algorithm = recipe.algorithm
    if algorithm is Algorithm.NUTS:
        return "the reference"
    if algorithm.trains_points:
        return "points" if algorithm is Algorithm.DETERMINISTIC else "fitted post hoc"
    if algorithm.is_mixture:
        return "its prior is made of its posteriors"
    if recipe.beta != 1:
        return f"β = {recipe.beta:g}"
    if algorithm is Algorithm.LAST_LAYER or tuple(recipe.settings.weights) != ("all",):
        return "some weights are points"
    return ""


def known_likelihood(likelihood: Likelihood) -> Likelihood:
    """The likelihood with its noise known: the geometric mean over networks, where each learned its own."""
    if isinstance(likelihood, GaussianLikelihood):
        log_noise = likelihood.log_noise.detach()
        noise = (log_noise.mean(0) if likelihood.is_each_posteriors else log_noise).exp()
        return GaussianLikelihood(noise, outputs=likelihood.outputs, learned=False)
    return copy.deepcopy(likelihood).requires_grad_(False)


def held_words(fitted: Sequence[Fitted]) -> str:
    """What was learned and is held, in words."""
    models = {one.name: one.bnn.posterior.model for one in fitted if one.bnn is not None}
    parts = {name: [*model.prior.parameters(), *model.likelihood.parameters()] for name, model in models.items()}
    learned = [name for name, parameters in parts.items() if any(p.requires_grad for p in parameters)]
    held = f"prior scales (of the first network) and noise that {', '.join(learned)} learned are held at what they became"
    return held if learned else ""


def too_large(one: Fitted, problem: Problem, simulations: int) -> str:
    """Why there is no calibration of so many ``simulations``, data sets; empty where there is."""
    settings, items = one.recipe.settings, problem.train.items
    batch = min(settings.batch, len(items))
    passes = settings.epochs * max(1, len(items) // batch) * batch * settings.particles
    most = min(MOST_WORK // (one.model(problem).num_weights * passes), MOST_NUMBERS // items.numel())
    if most >= simulations:
        return ""
    if most < FEWEST:
        return "so large a network on so many items would take hours; try fewer weights, items or epochs"
    return f"{simulations} data sets would take too long: --simulations {most // 10 * 10}"


def calibrate_fit(one: Fitted, problem: Problem, data: SupervisedData, options: BnnOptions, simulations: int) -> Calibration:
    """Simulation-based calibration of an algorithm at the run's inputs, prior and noise, on so many
    ``simulations``."""
    recipe, x = one.held(), problem.train.items
    at, names = places(x, data)

    def fit(y: Tensor) -> Tensor:
        posterior = fit_side_by_side(problem.network, x, y, recipe, loop=replace(options.loop, progress=False))
        return posterior.sample(DRAWS * len(y), seed=options.seed).unflatten(0, (DRAWS, len(y)))

    return calibrate_networks(one.model(problem), fit, x, at, simulations=simulations, names=names, seed=options.seed)


def places(x: Tensor, data: SupervisedData) -> tuple[Tensor, list[str] | None]:
    """Inputs at which functions are looked at, and their names: between the training inputs and one width beside them, or the
    first test items."""
    if x.shape[1:] != (1,):
        return data.test.items[:PLACES], None
    low, high = float(x.min()), float(x.max())
    at = torch.linspace(2 * low - high, 2 * high - low, PLACES)[:, None].to(x)
    return at, [f"f({float(value):.2g})" for value in at]


def with_record(finding: Finding, record: Mapping[str, Any]) -> Finding:
    """The finding with what the run itself found beside its NUTS (``record``, of ``metrics.json``)."""
    known: dict[str, Any] = {name: record.get(name) for name in ("kl_inside", "kl_outside", "width")}
    return replace(finding, **known)


def beside_chains(
    findings: Mapping[str, Finding], fitted: Sequence[Fitted], problem: Problem, data: SupervisedData, options: BnnOptions
) -> tuple[dict[str, Finding], list[str]]:
    """The findings beside NUTS under each algorithm's own prior and noise; and what was not sampled, in words."""
    found, remarks = dict(findings), []
    known: dict[bytes, ChainPosterior] = {}
    for one in fitted:
        if one.bnn is None:
            continue
        model = one.model(problem)
        if model.num_weights > MOST_WEIGHTS:
            remarks.append(f"NUTS: not of {one.name}: {model.num_weights} weights, at most {MOST_WEIGHTS}")
            continue
        key = fingerprint(model)
        if key not in known:
            known[key] = sample(one.name, model, problem, options)
        found[one.name] = replace(found[one.name], **distances(known[key], one.bnn.posterior, problem, data))
    return found, remarks


def fingerprint(model: BayesianNetwork) -> bytes:
    """Of prior and likelihood: algorithms that share both have one posterior."""
    numbers = (model.prior(model.num_weights).variance, *model.likelihood.state_dict().values())
    return type(model.prior).__name__.encode() + b"".join(n.detach().cpu().numpy().tobytes() for n in numbers)


def sample(name: str, model: BayesianNetwork, problem: Problem, options: BnnOptions) -> ChainPosterior:
    """NUTS, as the run's options have it."""
    print(f"NUTS for {name}: {options.chains} chains of {options.warmup} + {options.draws} draws; takes minutes ...")
    start = time.perf_counter()
    begin = model.initial_weights(options.chains)
    chains = sample_chains(model, problem.train, begin, draws=options.draws, warmup=options.warmup, seed=options.seed)
    print(f"NUTS for {name}: {time.perf_counter() - start:.0f} s")
    return chains


def distances(chains: ChainPosterior, other: NetworkPosterior, problem: Problem, data: SupervisedData) -> dict[str, Any]:
    """How far a posterior is from NUTS, and NUTS's own r-hat at the inputs it is measured at."""
    x = problem.train.items
    if x.shape[1:] == (1,):
        kl_inside, kl_outside, width, _ = agree(chains, other, x)
        at = places(x, data)[0]
        return {"kl_inside": kl_inside, "kl_outside": kl_outside, "width": width, "r_hat": float(chains.r_hat(at).max())}
    items = data.test.items[:KL_ITEMS]
    p, q = (each.observation(each.outputs(items, num_samples=KL_DRAWS)) for each in (chains, other))
    return {"kl_inside": float(predictive_kl(p, q).mean()), "r_hat": float(chains.r_hat(items).max())}
