"""The posterior of given tasks: draws, predictive probabilities, rate and ArviZ ``InferenceData``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from data.episodes import Episode
from data.seeding import seeded
from inference.evaluation.arviz import to_inference_data
from inference.evaluation.predictive import Predictive, labels_of, predictive, trace_guide, trace_model

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

    @torch.no_grad()
    def to_arviz(
        self, query_y: Tensor | None = None, *, num_samples: int = 200, class_names: Sequence[Any] = (), seed: int = 0
    ):
        """ArviZ ``InferenceData``.

        Groups: ``posterior`` and ``prior``, independent draws of the weights; ``prior_predictive`` and
        ``posterior_predictive``, label draws of the *support*, which the posterior was conditioned on, with ``observed_data``
        and ``log_likelihood``;
        ``predictions``, label draws and class probabilities of the queries and, where their labels are known, the log density
        of each; ``predictions_constant_data``. Without a support set its groups are left out.
        Dimensions: ``task``, ``class``, ``feature``, ``support``, ``query``.

        Args:
            query_y: ``[tasks, query]`` labels, where known.
            num_samples: draws.
            class_names: of the classes, where all tasks share them.
        """
        episode, drawn = self.episode, self.draw(num_samples, seed)
        support = episode._replace(query_x=episode.support_x)
        on_queries = labels_of(trace_model(self.model, drawn, episode, num_samples))
        supported: dict[str, dict[str, Tensor]] = {}
        with seeded(seed, 1, device=self.query_x.device):
            before = trace_model(self.model, None, support if support.support_y.numel() else episode, num_samples)
            predictions = {"labels": on_queries.sample()}
            if support.support_y.numel():
                on_support = labels_of(trace_model(self.model, drawn, support, num_samples))
                supported = {
                    "prior_predictive": {"labels": labels_of(before).sample()},
                    "posterior_predictive": {"labels": on_support.sample()},
                    "observed_data": {"labels": episode.support_y},
                    "log_likelihood": {"labels": on_support.log_prob(episode.support_y)},
                }
        constant = {"features": episode.query_x}
        if hasattr(on_queries, "probs"):
            predictions["probabilities"] = on_queries.probs
        if query_y is not None:
            constant["true_labels"] = query_y
            predictions["log_density"] = on_queries.log_prob(query_y.to(self.query_x.device))
        return to_inference_data(
            {
                "posterior": weights_of(drawn.nodes),
                "prior": weights_of(before.nodes),
                **supported,
                "predictions": predictions,
                "predictions_constant_data": constant,
            },
            dims={"weights": ("task", "class", "feature"), "labels": ("task", "support")},
            prediction_dims={
                "labels": ("task", "query"),
                "true_labels": ("task", "query"),
                "log_density": ("task", "query"),
                "probabilities": ("task", "query", "class"),
                "features": ("task", "query", "feature"),
            },
            coords={"class": list(class_names)} if class_names else {},
            attributes=self.attributes,
        )


def infer(model: nn.Module, guide: nn.Module, episode: Episode, **attributes: Any) -> TaskPosterior:
    """The posterior of feature tasks; query labels are dropped unless the guide is a reference that reads them."""
    given = episode if getattr(guide, "saw_labels", False) else episode.unlabelled()
    return TaskPosterior(model, guide, given, attributes)


def weights_of(sites: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tasks' weights in a trace, ``[draws, tasks, rows, D]``; nothing where there are none."""
    return {WEIGHTS: sites[WEIGHTS]["value"].squeeze(-3)} if WEIGHTS in sites else {}
