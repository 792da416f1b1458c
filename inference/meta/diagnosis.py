"""All checks of a run on images or features: objective beside its bounds, calibration, NUTS of the same model.

What SIB's posterior is of. The model of a task is p(w) Π p(y_i given x_i, w) over its *queries*; the support, labels included,
is an input of the guide and of no factor. The guide sees support and queries without their labels, and is trained to minimise
−E_q log p(y given x, w) + β KL(q ‖ p) of the query labels over real tasks. So its q is no conditional of the model's joint law:
neither p(w given the support's labels), which no term of the objective scores, nor p(w given the queries' labels), which it
never sees. Simulation-based calibration asks whether truths drawn from p(w) p(y given w) rank evenly among draws of such a
conditional: a wrong question here, which the best guide there is would fail. Asked instead: are its predictions of new tasks
calibrated; how far is its objective from the best that any guide could reach (:mod:`inference.diagnostics.gap_bounds`); and,
where β = 1, what would the model's own p(w given the support), by NUTS, predict?
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data.ambiguous import sampler_of
from data.episodes import Episode
from data.items import LabelledItems
from data.seeding import mix_seed
from guides.tasks.unrolled import Evidence
from inference.diagnostics.amortization import optimise_tasks, prior_guide
from inference.diagnostics.findings import Diagnosis, Finding
from inference.diagnostics.gap_bounds import informed_guide, refined_guide
from inference.diagnostics.nuts import compare_moments, r_hat, run_nuts
from inference.diagnostics.regret import mixture_log_density, regret
from inference.evaluation.predictive import place_of, predictive, trace_guide
from inference.meta.checkpoints import selected_name
from inference.meta.learner import TEST_SEED, FittedLearner
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features
from models.plates import num_classes
from models.tasks.model import EmpiricalBayesModel
from models.tasks.priors import HierarchicalGaussianPrior

DRAWN = 100  # posterior draws of objective and predictions
STEPS, PARTICLES = 300, 4  # of each task's own optimisation: within 0.2 nats of 600 and 8 on the default run
CHAINS, DRAWS, WARMUP, NUTS_TASKS = 2, 300, 200, 8

SUPPORT, QUERIES, OWN = "given the support's labels", "given the queries' labels", "given its own predictions"

NO_SBC = (
    "SBC: not of image tasks: the support is an input of the guide that no likelihood scores, so that its posterior is no "
    "conditional of the model, whose simulations could tell whether it is right (see inference/meta/diagnosis.py)"
)
NO_NUTS = "NUTS: not run; --nuts true samples p(w given the support's labels) of the model where β = 1"


@dataclass(frozen=True)
class Judged:
    """A posterior on tasks with known labels.

    Attributes:
        losses: −E_q log p(y given x, w) + β KL(q ‖ p) of the queries, nats: ``[tasks]``.
        probabilities: of the queries, ``[tasks, query, way]``.
        logs: log of the probability of the true class, nats: ``[tasks, query]``.
    """

    losses: Tensor | None
    probabilities: Tensor
    logs: Tensor


def diagnose_tasks(run: RunFolder, *, tasks: int, nuts: bool) -> Diagnosis:
    """Every learner of a run on its test tasks.

    Args:
        run: a finished run of ``svi_sib`` on images or features.
        tasks: balanced test tasks.
        nuts: whether NUTS samples the first of them.
    """
    part, findings, sampled = load_features(run.features)["test"], [], False
    for name in learner_names(run):
        learner = FittedLearner.load(run, name)
        print(f"checking {name} ...")
        episode = test_tasks(learner, part, tasks)
        findings += examine(learner, episode, nuts=nuts)
        sampled |= nuts and is_posterior(learner)
    remarks = [NO_SBC, *([] if nuts else [NO_NUTS])]
    if nuts and not sampled:
        remarks.append("NUTS: not run, as no learner has β = 1: at another β the optimum is no posterior of the model")
    return Diagnosis(findings, remarks)


def learner_names(run: RunFolder) -> list[str]:
    """The learners of a run, in the order of its records; of a run by an earlier version, the selected one."""
    named = [
        record["variant"] for record in run.results().get("results", []) if "trained_steps" in record and "variant" in record
    ]
    return list(dict.fromkeys(named)) or [selected_name(run)]


def test_tasks(learner: FittedLearner, part: LabelledItems, tasks: int) -> Episode:
    """Balanced tasks of the test classes, in the learner's feature space; the same for all learners of a run."""
    with torch.no_grad():
        mapped = LabelledItems(learner.space(part.items), part.labels, part.class_names)
    sampler = sampler_of(mapped, replace(learner.spec, imbalance=None, partition=None), split="test split")
    device, dtype = place_of(learner.guide, learner.model, learner.space)
    return sampler.sample(tasks, seed=mix_seed(TEST_SEED, tasks)).to(device, dtype=dtype)


def is_bounded(learner: FittedLearner) -> bool:
    """Whether the learner's objective has an optimum of each task that can be computed: a Gaussian posterior with a rate under
    a prior without a posterior of its own."""
    prior, variant = getattr(learner.model, "prior", None), learner.variant
    return bool(variant.posterior == "gaussian" and variant.beta) and not isinstance(prior, HierarchicalGaussianPrior)


def is_posterior(learner: FittedLearner) -> bool:
    """Whether the objective is the negative ELBO, so that its optimum is a posterior, which NUTS can draw."""
    return is_bounded(learner) and learner.variant.beta == 1


def examine(learner: FittedLearner, episode: Episode, *, nuts: bool) -> list[Finding]:
    """One learner, and beside it what each task's own optimisation finds; with ``nuts`` what NUTS
    samples too."""
    name, beta = learner.variant.name, learner.variant.beta or 0.0
    found = judge(learner.model, learner.guide, episode, beta)
    if not is_bounded(learner):
        return [finding(name, found, episode)]
    model: Any = learner.model
    how: dict[str, Any] = {"beta": beta, "steps": STEPS, "particles": PARTICLES, "seed": learner.settings.seed}
    guides = {
        QUERIES: informed_guide(model, episode, **how),
        OWN: refined_guide(model, episode, found.probabilities, **how),
        SUPPORT: optimise_tasks(model, prior_guide(model, episode), episode, on=Evidence.SUPPORT, **how),
    }
    per_task = {words: judge(model, guide, episode, beta) for words, guide in guides.items()}
    findings = [replace(finding(name, found, episode), **bounds(learner, per_task))]
    findings += [reference_row(f"{name}, per task {words}", other, words) for words, other in per_task.items()]
    if nuts and is_posterior(learner):
        return beside_nuts(findings, learner, guides, [found, *per_task.values()], episode)
    return findings


def bounds(learner: FittedLearner, per_task: Mapping[str, Judged]) -> dict[str, Any]:
    """What a learner's objective is held against; of a guide that reads the queries' labels it is the optimum itself."""
    if getattr(learner.guide, "saw_labels", False):
        return {"best_losses": per_task[QUERIES].losses}
    return {"informed_losses": per_task[QUERIES].losses, "refined_losses": per_task[OWN].losses}


def finding(name: str, judged: Judged, episode: Episode) -> Finding:
    """What is found of one posterior on its own."""
    assert episode.query_y is not None
    way = judged.probabilities.shape[-1]
    return Finding(
        name,
        losses=judged.losses,
        guess=None if judged.losses is None else episode.query_y.shape[1] * math.log(way),
        nll=float(-judged.logs.mean()),
        probabilities=judged.probabilities.flatten(0, 1),
        labels=episode.query_y.flatten(),
    )


@torch.no_grad()
def judge(model: nn.Module, guide: nn.Module, episode: Episode, beta: float) -> Judged:
    """A guide's objective and predictions; every guide gets the same noise, so that differences are finer than each, and every
    task its own, so that intervals over tasks hold the draws' error."""
    assert episode.query_y is not None
    predicted = predictive(model, guide, episode, num_samples=DRAWN, batch=len(episode.query_x))
    distortion = predicted.distortion(episode.query_y)
    losses = None if predicted.rate is None else distortion + beta * predicted.rate
    return Judged(losses, predicted.probabilities(), predicted.log_predictive(episode.query_y))


def reference_row(name: str, judged: Judged, words: str) -> Finding:
    """What is found of posteriors that are no learner's, ``words`` say whose; where they know the queries' labels, their
    predictions say nothing."""
    return Finding(name, losses=judged.losses, nll=None if words == QUERIES else float(-judged.logs.mean()))


@dataclass(frozen=True)
class Sampled:
    """NUTS on the first tasks.

    Attributes:
        weights: pooled draws, ``[draws, tasks, way, D]``.
        judged: its predictions of the queries.
        logs: log of the probability of the true class by each chain, nats: ``[chains, tasks, query]``.
        r_hat: the largest of the queries' class probabilities.
    """

    weights: Tensor
    judged: Judged
    logs: Tensor
    r_hat: float


@torch.no_grad()
def sample(model: EmpiricalBayesModel, episode: Episode, given: Episode, *, seed: int) -> Sampled:
    """p(w given labels) of the model itself.

    Args:
        episode: with the queries that are predicted.
        given: the same tasks with the items as queries whose labels are given.
        seed: of the chains.
    """
    assert episode.query_y is not None
    with torch.enable_grad():
        known = copy.deepcopy(model).requires_grad_(False).eval()  # learned numbers as constants, which a compiler needs
        chains = run_nuts(known, *given, chains=CHAINS, draws=DRAWS, warmup=WARMUP, seed=seed)
    print(f"NUTS: {CHAINS} chains of {WARMUP} + {DRAWS} transitions on {len(episode.query_x)} tasks, {chains.seconds:.0f} s")
    weights = chains.sites["weights"].squeeze(-3)  # [chains, draws, tasks, way, D]
    way = episode.way or num_classes(episode.support_y)
    likelihood = model.likelihood.given(episode.support_x.shape[1] / way, way)
    labels: Any = likelihood(model.predictor(episode.query_x, weights))
    logs = mixture_log_density(labels.log_prob(episode.query_y), 1)
    judged = Judged(None, labels.probs.mean((0, 1)), mixture_log_density(logs))
    return Sampled(weights.flatten(0, 1), judged, logs, float(r_hat(labels.probs).max()))


def beside_nuts(
    findings: Sequence[Finding],
    learner: FittedLearner,
    guides: Mapping[str, nn.Module],
    judged: Sequence[Judged],
    episode: Episode,
) -> list[Finding]:
    """The findings with what NUTS adds: regret against p(w given the support's labels), moments of the Gaussians that were
    given labels beside NUTS given the same, and NUTS's own rows.

    Args:
        guides: what :func:`examine` optimised.
        judged: of the same posteriors as ``findings``, in the same order.
    """
    few, name, model = episode.tasks(slice(NUTS_TASKS)), learner.variant.name, learner.model
    sampled = {
        SUPPORT: sample(model, few, few.on_support(), seed=learner.settings.seed),  # type: ignore[arg-type]
        QUERIES: sample(model, few, few, seed=learner.settings.seed),  # type: ignore[arg-type]
    }
    reference = sampled[SUPPORT].logs
    known = [None, *guides]  # the learner's own guide has no NUTS: it aims at neither
    added = []
    for found, one, words in zip(findings, judged, known, strict=True):
        moments = None
        if words in sampled:
            site: Any = trace_guide(guides[words], episode, len(sampled[words].weights)).nodes["weights"]
            moments = compare_moments(site["value"].detach().squeeze(-3)[:, : len(few.query_x)], sampled[words].weights)
        blind = words != QUERIES  # predictions of known labels say nothing
        against = regret(reference, one.logs[: reference.shape[1]]) if blind else None
        added.append(replace(found, regret=against, reference=f"NUTS {SUPPORT}" if blind else None, moments=moments))
    rows = [
        replace(reference_row(f"{name}, NUTS {words}", one.judged, words), r_hat=one.r_hat) for words, one in sampled.items()
    ]
    return [*added, *rows]
