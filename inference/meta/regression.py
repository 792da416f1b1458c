"""Few-shot regression on the same hierarchy: ``--data linear`` and ``--data sinusoids``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from data.episodes import Episode
from data.errors import UserError
from data.regression import linear_evidence, linear_tasks, sinusoid_tasks
from data.seeding import mix_seed, seeded
from guides.tasks.starts import RidgeStart
from guides.tasks.unrolled import SyntheticGradientGuide
from inference.elbo import RateDistortionELBO, RateDistortionModule
from inference.evaluation.posterior import TaskPosterior
from inference.meta.options import SibOptions
from inference.meta.training import DRAWS, TASKS
from inference.runs.commands import options_to_yaml, print_places, write_metrics
from inference.runs.folder import RunFolder
from inference.runs.tensors import save_tensors
from models.likelihoods import GaussianLikelihood
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import LinearPredictor
from models.tasks.priors import GaussianPrior

LINEAR_PRIOR = (torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.7, 0.3, 1.2]))
NOISE = {"linear": 0.5, "sinusoids": 0.1}
SUPPORT = 10


def regression_tasks(name: str, tasks: int, *, queries: int, seed: int) -> Episode:
    """A batch of ``linear`` or ``sinusoids`` tasks with ten support points."""
    if name == "linear":
        return linear_tasks(tasks, queries, *LINEAR_PRIOR, noise=NOISE[name], seed=seed, support=SUPPORT)
    return sinusoid_tasks(tasks, support=SUPPORT, queries=queries, noise=NOISE[name], seed=seed)


def build_regression(name: str, num_features: int, beta: float) -> RateDistortionModule:
    """Gaussian prior, linear predictor, Gaussian likelihood with learned noise; the guide is ridge regression on the support
    set (K = 0), which for linear tasks contains the exact posterior mean.

    The queries' noise is learned together with that guide, so it also covers what the support set leaves unknown.
    """
    prior = GaussianPrior(torch.zeros(num_features), torch.ones(num_features))
    predictor = LinearPredictor(1.0, learned=False)
    model = EmpiricalBayesModel(prior, predictor, GaussianLikelihood(1.0), way=1)
    start = RidgeStart(torch.zeros(num_features), torch.ones(num_features), 1.0)
    guide = SyntheticGradientGuide(
        prior, predictor, start, torch.nn.Identity(), num_features=num_features, steps=0, beta=beta, way=1
    )
    return RateDistortionELBO(beta=beta)(model, guide)


def fit_regression(objective: RateDistortionModule, options: SibOptions) -> None:
    """Adam with a cosine decay on fresh tasks; deterministic for a seed."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 10 * options.learning_rate)
    steps = max(1, options.tasks // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        episode = regression_tasks(
            options.data, options.batch, queries=options.queries, seed=mix_seed(options.seed, step, TASKS)
        )
        with seeded(options.seed, step, DRAWS):
            loss = objective(*episode) / options.batch
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {float(loss)} at step {step}: lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def score_regression(objective: RateDistortionModule, options: SibOptions, *, num_samples: int = 200) -> dict[str, Any]:
    """RMSE of the predictive mean, predictive NLL (nats a query), coverage of the 90 % interval, rate and distortion."""
    seed = mix_seed(options.seed, options.tasks, 1)
    episode = regression_tasks(options.data, options.test_tasks, queries=options.queries, seed=seed)
    assert episode.query_y is not None
    theta = objective.guide.unroll(*episode.unlabelled())[-1]
    guide = objective.guide
    posterior = TaskPosterior(objective.model, theta, guide.family, episode.query_x, guide.point_hyperparameters())
    outputs = posterior.outputs(num_samples=num_samples)
    log_likelihood = objective.model.likelihood(outputs).log_prob(episode.query_y)
    noise = objective.model.likelihood.log_noise.exp()
    spread = (outputs[..., 0].var(0) + noise**2).sqrt()
    error = outputs[..., 0].mean(0) - episode.query_y
    return {
        "split": "test",
        "steps": 0,
        "shot": SUPPORT,
        "queries": options.queries,
        "episodes": options.test_tasks,
        "beta": options.betas[0],
        "rmse": float(error.square().mean().sqrt()),
        "nll": float(-(log_likelihood.logsumexp(0) - math.log(num_samples)).mean()),
        "coverage90": float((error.abs() < 1.645 * spread).float().mean()),
        "noise": float(noise),
        "rate": float(posterior.rate().mean()),
        "distortion": float(-log_likelihood.sum(-1).mean()),
    }


def exact_nll(options: SibOptions) -> float:
    """−log p(query given support) of linear tasks under the true prior, nats a query: no method can do better on average."""
    seed = mix_seed(options.seed, options.tasks, 1)
    episode = regression_tasks("linear", options.test_tasks, queries=options.queries, seed=seed)
    assert episode.query_y is not None
    x, y = torch.cat([episode.support_x, episode.query_x], 1), torch.cat([episode.support_y, episode.query_y], 1)

    def evidence(inputs: Tensor, targets: Tensor) -> Tensor:
        return linear_evidence(inputs, targets, *LINEAR_PRIOR, NOISE["linear"])

    return float(-(evidence(x, y) - evidence(episode.support_x, episode.support_y)).mean() / options.queries)


def regression_run(options: SibOptions) -> RunFolder:
    """The command on regression data: fit, score, write ``metrics.json``, print."""
    num_features = regression_tasks(options.data, 1, queries=1, seed=0).query_x.shape[-1]
    run = RunFolder.create(options.out, "svi_sib", options_to_yaml(options))
    print(f"run folder: {run.path}")
    with seeded(options.seed):
        objective = build_regression(options.data, num_features, options.betas[0])
    with run.timed("fit"):
        fit_regression(objective, options)
    save_tensors(run.checkpoints / "regression.safetensors", objective.state_dict(), {})
    record = score_regression(objective, options)
    write_metrics(run, "svi_sib", options, [record])
    for name in ("rmse", "nll", "coverage90", "noise", "rate", "distortion"):
        print(f"{name:>12}  {record[name]:.3f}")
    if options.data == "linear":
        print(f"{'exact nll':>12}  {exact_nll(options):.3f}  (joint predictive of the true model, nats a query)")
    print_places(run, [])
    return run
