"""The posterior of given tasks: draws, predictive probabilities, rate and ArviZ ``InferenceData``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from data.episodes import Episode
from data.errors import UserError
from data.seeding import seeded
from inference.evaluation.export import tasks_to_arviz
from inference.evaluation.predictive import Predictive, predictive, trace_guide

WEIGHTS = "weights"
"""The latent site of a task's weights."""


@dataclass(frozen=True)
class TaskPosterior:
    """q(w) of a batch of tasks, with the model that gives predictions their meaning.

    Attributes:
        model, guide: any programs over tasks; the model has the observed site ``labels``.
        episode: the tasks as the guide saw them (features); its queries are what the methods predict by default.
        attributes: what made it (command, method, β, data set, seed), for ArviZ.
    """

    model: nn.Module
    guide: nn.Module
    episode: Episode
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        tasks, queries = self.query_x.shape[:2]
        sizes = f"tasks={tasks}, support={self.episode.support_y.shape[1]}, queries={queries}"
        return ", ".join([f"{type(self).__name__}({sizes}", *(f"{k}={v!r}" for k, v in self.attributes.items())]) + ")"

    @property
    def query_x(self) -> Tensor:
        """The features that were adapted on, ``[tasks, query, D]``."""
        return self.episode.query_x

    @property
    def loc(self) -> Tensor:
        """Mean of the tasks' weights, ``[tasks, rows, D]``, averaged over draws of hyperparameters where they are latent.

        Raises:
            ValueError: the method has no such weights.
        """
        return self.latent(self.draw(1 if self.is_flat else 256), WEIGHTS)["fn"].mean.mean(0).squeeze(-3)

    @property
    def is_flat(self) -> bool:
        """Whether the tasks' weights are all that is latent."""
        return set(self.draw(1).stochastic_nodes) <= {WEIGHTS}

    def sample(self, num_samples: int, *, site: str = WEIGHTS, seed: int = 0) -> Tensor:
        """Independent draws of a latent site; the tasks' weights are ``[num_samples, tasks, rows, D]``. A point repeats itself.

        Raises:
            ValueError: the method has no such site.
        """
        return self.latent(self.draw(num_samples, seed), site)["value"].squeeze(-3)

    @torch.no_grad()
    def draw(self, num_samples: int, seed: int = 0) -> Trace:
        """The guide's sites under independent draws."""
        with seeded(seed, device=self.query_x.device):
            return trace_guide(self.guide, self.episode, num_samples)

    def latent(self, trace: Trace, site: str) -> Any:
        """A latent site of a trace.

        Raises:
            ValueError: there is none of this name.
        """
        if site not in trace.stochastic_nodes:
            known = ", ".join(trace.stochastic_nodes) or "none"
            raise ValueError(f"this method has no latent site {site!r}: it has {known}")
        return trace.nodes[site]

    def predictive(self, query_x: Tensor | None = None, *, num_samples: int = 32, seed: int = 0) -> Predictive:
        """The predictive distribution of the queries, or of other items ``[tasks, n, D]``."""
        return predictive(self.model, self.guide, self.episode, query_x=query_x, num_samples=num_samples, seed=seed)

    def probabilities(self, query_x: Tensor | None = None, *, num_samples: int = 32) -> Tensor:
        """Posterior predictive class probabilities, averaged over draws: ``[tasks, query, way]``."""
        return self.predictive(query_x, num_samples=num_samples).probabilities()

    def log_likelihood(self, query_y: Tensor, query_x: Tensor | None = None, *, num_samples: int = 32) -> Tensor:
        """log p(y_i given x_i, w_s), nats: ``[draws, tasks, query]``."""
        return self.predictive(query_x, num_samples=num_samples).log_likelihood(query_y)

    def rate(self) -> Tensor:
        """KL(q ‖ p_ψ) of each task, nats: ``[tasks]``; NaN for a point, which has none."""
        rate = self.predictive().rate
        return self.query_x.new_full(self.query_x.shape[:1], torch.nan) if rate is None else rate

    def to_arviz(
        self, query_y: Tensor | None = None, *, num_samples: int = 200, class_names: Sequence[Any] = (), seed: int = 0
    ):
        """ArviZ ``InferenceData``; :mod:`inference.evaluation.arviz` says what each group means.

        What is observed is the *support*, which the posterior was conditioned on; the queries are ``predictions``. Without a
        support set the groups of observed data are left out; a method without latent sites has no ``posterior``.

        Args:
            query_y: ``[tasks, query]`` labels, where known.
            num_samples: draws; rounded up to a multiple of four.
            class_names: of the classes, where all tasks share them.
            seed: of the draws.

        Raises:
            UserError: labels of another shape.
        """
        if query_y is not None and query_y.shape != self.query_x.shape[:2]:
            given, wanted = tuple(query_y.shape), tuple(self.query_x.shape[:2])
            raise UserError(f"`query_y` has shape {given}, where the posterior's queries are {wanted}: tasks × queries")
        return tasks_to_arviz(
            self.model,
            self.guide,
            self.episode,
            query_y,
            num_samples=num_samples,
            class_names=class_names,
            seed=seed,
            attributes=self.attributes,
        )


def infer(model: nn.Module, guide: nn.Module, episode: Episode, **attributes: Any) -> TaskPosterior:
    """The posterior of feature tasks; query labels are dropped unless the guide is a reference that reads them."""
    given = episode if getattr(guide, "saw_labels", False) else episode.unlabelled()
    return TaskPosterior(model, guide, given, attributes)
