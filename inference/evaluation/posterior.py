"""The posterior of given tasks: draws, predictive probabilities, rate and ArviZ ``InferenceData``."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.episodes import Episode
from guides.tasks.unrolled import Family, Posterior, SyntheticGradientGuide
from models.tasks.model import EmpiricalBayesModel


@dataclass(frozen=True)
class TaskPosterior:
    """q_θ(w) for a batch of tasks, with the model that gives predictions their meaning.

    Made by :func:`infer` (features in) or :meth:`inference.meta.sib.SIB.posterior` (images in).

    Attributes:
        model: the generative model.
        theta: mean and log standard deviation, ``[tasks, way, D]``.
        family: Gaussian or delta.
        query_x: the features that were adapted on, ``[tasks, query, D]``; what the methods predict by default.
        hyperparameters: ψ of the prior that the rate is taken against.
    """

    model: EmpiricalBayesModel
    theta: Posterior
    family: Family
    query_x: Tensor
    hyperparameters: tuple[Tensor, ...]

    @torch.no_grad()
    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Class weights ``[num_samples, tasks, way, D]``; a delta posterior repeats its point.

        Draws are antithetic (pairs mirrored at the mean) and their noise is shared by all tasks, so that a task's draws do
        not depend on which tasks it is batched with.
        """
        loc, log_scale = self.theta
        if self.family is Family.DELTA:
            return loc.expand(num_samples, *loc.shape)
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(math.ceil(num_samples / 2), 1, *loc.shape[-2:], generator=generator).to(loc)
        noise = torch.stack([half, -half], dim=1).flatten(0, 1)[:num_samples]
        return loc + noise * log_scale.exp()

    @torch.no_grad()
    def log_likelihood(self, query_y: Tensor, query_x: Tensor | None = None, *, num_samples: int = 32) -> Tensor:
        """log p(y_i given x_i, w_s), nats: ``[num_samples, tasks, query]``."""
        return self.model.likelihood(self.outputs(query_x, num_samples=num_samples)).log_prob(query_y)

    @torch.no_grad()
    def outputs(self, query_x: Tensor | None = None, *, num_samples: int = 32, seed: int = 0) -> Tensor:
        """Predictor outputs under posterior draws: ``[num_samples, tasks, query, way]``."""
        num_samples = 1 if self.family is Family.DELTA else num_samples
        features = self.query_x if query_x is None else query_x
        return self.model.predictor(features, self.sample(num_samples, seed=seed))

    @torch.no_grad()
    def probabilities(self, query_x: Tensor | None = None, *, num_samples: int = 32) -> Tensor:
        """Posterior predictive class probabilities, averaged over draws: ``[tasks, query, way]``."""
        return self.outputs(query_x, num_samples=num_samples).softmax(-1).mean(0)

    @torch.no_grad()
    def rate(self) -> Tensor:
        """KL(q ‖ p_ψ) of each task, nats: ``[tasks]``; NaN for a delta posterior, which has none."""
        loc, log_scale = self.theta
        if self.family is Family.DELTA:
            return loc.new_full(loc.shape[:1], torch.nan)
        q = torch.distributions.Normal(loc, log_scale.exp())
        p = self.model.prior.distribution(self.hyperparameters, loc.shape[-2])
        q_event = torch.distributions.Independent(torch.distributions.Independent(q, 1), 1)
        return torch.distributions.kl_divergence(q_event, p.expand(loc.shape[:1]))

    @torch.no_grad()
    def to_arviz(self, query_y: Tensor | None = None, *, num_samples: int = 200, class_names: tuple[str, ...] = ()):
        """ArviZ ``InferenceData`` with groups ``posterior``, ``posterior_predictive``, ``constant_data`` and, with labels,
        ``log_likelihood`` and ``observed_data``.

        Dimensions: ``chain, draw, task, class, feature`` for ``weights`` and ``chain, draw, task, query, class`` for
        ``probabilities``.

        Args:
            query_y: ``[tasks, query]`` labels, where known.
            num_samples: draws.
            class_names: coordinate labels of the classes, where all tasks share them.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at import
            import arviz

        def array(tensor: Tensor):
            return tensor.detach().cpu().numpy()

        weights = self.sample(num_samples)
        outputs = self.model.predictor(self.query_x, weights)
        groups: dict[str, Any] = {
            "posterior": {"weights": array(weights)[None]},
            "posterior_predictive": {"probabilities": array(outputs.softmax(-1))[None]},
            "constant_data": {"features": array(self.query_x)},
        }
        dims = {
            "weights": ["task", "class", "feature"],
            "probabilities": ["task", "query", "class"],
            "features": ["task", "query", "feature"],
            "labels": ["task", "query"],
        }
        if query_y is not None:
            groups["observed_data"] = {"labels": array(query_y)}
            groups["log_likelihood"] = {"labels": array(self.model.likelihood(outputs).log_prob(query_y))[None]}
        coords: dict[str, list] = {"class": list(class_names or range(weights.shape[-2]))}
        return arviz.from_dict(**groups, dims=dims, coords=coords)


@torch.no_grad()
def infer(
    model: EmpiricalBayesModel, guide: SyntheticGradientGuide, episode: Episode, *, steps: int | None = None
) -> TaskPosterior:
    """The amortized posterior of feature tasks after ``steps`` (default: the trained K) steps.

    Args:
        episode: features ``[tasks, n, D]``; query labels are ignored unless the guide is the exact-gradient reference.
    """
    return trajectory(model, guide, episode, steps=steps)[-1]


@torch.no_grad()
def trajectory(
    model: EmpiricalBayesModel, guide: SyntheticGradientGuide, episode: Episode, *, steps: int | None = None
) -> list[TaskPosterior]:
    """The posteriors before the first and after every step, ``steps + 1`` of them."""
    if not getattr(guide.gradient, "needs_labels", False):
        episode = episode.unlabelled()
    thetas = guide.unroll(*episode, steps=steps)
    return [TaskPosterior(model, theta, guide.family, episode.query_x, guide.point_hyperparameters()) for theta in thetas]
