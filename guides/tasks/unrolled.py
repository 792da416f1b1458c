"""The amortized guide: K steps of synthetic gradient descent on the posterior of every task in the batch."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.tasks.hyper import HyperGuide
from models.plates import num_classes, task_plate
from models.tasks.predictors import Predictor
from models.tasks.priors import Prior


class Family(StrEnum):
    """The variational family of a task's posterior."""

    GAUSSIAN = "gaussian"
    """q(w) = N(loc, diag scale²)."""
    DELTA = "delta"
    """q(w) = δ(w − loc), what the original code uses: no rate, a point estimate."""


class Posterior(NamedTuple):
    """θ of a batch of tasks.

    Attributes:
        loc: ``[..., tasks, way, D]``.
        log_scale: the same shape; ignored by a delta posterior.
    """

    loc: Tensor
    log_scale: Tensor


class SyntheticGradientGuide(PyroModule):
    """q_θ(w_t) with θ found by unrolling, from θ⁰ = λ(support, queries),

        θ ← θ − η [ E_ε Σ_i ξ(ŷ_i) ∂ŷ_i/∂w ∂w(θ, ε)/∂θ + β ∇_θ KL(q_θ ‖ p_ψ) ].

    Query labels are not used (but for the exact-gradient reference), so training and testing run the same program. All tasks
    are unrolled together and never mix; the guide is differentiable through all steps.

    With ``whiten`` the descent runs in the prior's own units, w = μ_ψ + σ_ψ u (the non-centred parameterisation), which
    multiplies the gradient of the mean by σ_ψ²; the KL's pull is then η β (loc − μ_ψ), stable however narrow the learned
    prior becomes. At β near 1 the plain form overshoots as soon as η β > 2 σ_ψ².

    With ``inner_samples`` S ≥ 1 the expectation is an average over S draws, as the equation says. With 0 (default) it is
    taken at the mean, ε = 0, so that the guide is deterministic; the likelihood's pull on log σ is then a learned shift a
    step and dimension. Source: Hu et al. 2019, equation 9.

    Args:
        prior, predictor: the model's own modules (shared parameters).
        initialisation: λ, see :mod:`guides.tasks.starts`.
        gradient: ξ, see :mod:`guides.tasks.gradient_networks`.
        num_features: D.
        steps: K; 0 is inductive inference.
        inner_lr: initial η.
        learn_inner_lr: learn one η a step, on the log scale.
        beta: weight of the inner KL; the same β as in the objective.
        whiten: descend in the prior's units.
        inner_samples: S.
        family: Gaussian or delta.
        closed_form: use the predictor's closed-form pull-back; ``False`` takes the generic one.
        hyper: q(ψ) of a hierarchical prior.
        way, num_tasks: as in :class:`~models.tasks.model.EmpiricalBayesModel`.
    """

    def __init__(
        self,
        prior: Prior,
        predictor: Predictor,
        initialisation: nn.Module,
        gradient: nn.Module,
        *,
        num_features: int,
        steps: int = 3,
        inner_lr: float = 1e-3,
        learn_inner_lr: bool = False,
        beta: float = 1.0,
        whiten: bool = False,
        inner_samples: int = 0,
        family: Family | str = Family.GAUSSIAN,
        closed_form: bool = True,
        hyper: HyperGuide | None = None,
        way: int | None = None,
        num_tasks: int | None = None,
    ) -> None:
        super().__init__()
        if steps < 0 or inner_samples < 0:
            raise ValueError(f"steps = {steps} and inner_samples = {inner_samples} must not be negative")
        self.prior, self.predictor, self.hyper = prior, predictor, hyper
        self.initialisation, self.gradient = initialisation, gradient
        self.steps, self.beta, self.inner_samples = steps, beta, inner_samples
        self.whiten = whiten
        self.family, self.closed_form, self.way, self.num_tasks = Family(family), closed_form, way, num_tasks
        rates = torch.full((max(steps, 1),), float(inner_lr)).log()
        self.log_inner_lr = nn.Parameter(rates, requires_grad=learn_inner_lr)
        self.scale_shift = nn.Parameter(torch.zeros(max(steps, 1), num_features))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None) -> Posterior:
        """Sample the site ``weights`` (event ``[way, D]``) in the plate ``tasks``; shapes as in the model."""
        hyperparameters = self.hyper() if self.hyper is not None else self.prior.hyperparameters()
        posterior = self.unroll(support_x, support_y, query_x, query_y, hyperparameters=hyperparameters)[-1]
        with task_plate(query_x, self.num_tasks):
            pyro.sample("weights", self.distribution(posterior))
        return posterior

    def distribution(self, posterior: Posterior) -> dist.TorchDistribution:
        """q_θ as a distribution with batch_shape ``[..., tasks, 1]`` (the plates) and event_shape ``[way, D]``."""
        loc = posterior.loc.unsqueeze(-3)
        if self.family is Family.DELTA:
            return dist.Delta(loc, event_dim=2)
        return dist.Normal(loc, posterior.log_scale.exp().unsqueeze(-3)).to_event(2)

    def unroll(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        *,
        steps: int | None = None,
        hyperparameters: tuple[Tensor, ...] | None = None,
        known_weights: Tensor | None = None,
    ) -> list[Posterior]:
        """θ⁰, θ¹, …, θᴷ for tasks of shape ``[tasks, n, D]``.

        Args:
            steps: K here; beyond the trained number the last step's rates are used again.
            known_weights: ``[tasks, known, D]``, classes the queries may also belong to, whose weights stay as they are
                (learning without forgetting); they come first in the outputs that ξ sees.
            hyperparameters: ψ, where it was sampled; the prior's own otherwise (of a hierarchical prior: the mean of q(ψ)).

        Returns:
            ``steps + 1`` posteriors.
        """
        if hyperparameters is None:
            hyperparameters = self.point_hyperparameters()
        # sampled hyperparameters carry the plates' dimensions, [..., 1, 1, D]; the tasks' own dimension is enough here
        hyperparameters = tuple(h.squeeze(-2) if self.hyper is not None and h.dim() > 1 else h for h in hyperparameters)
        way = self.way or num_classes(support_y)
        prepared = self.predictor.prepare(query_x)
        posterior = Posterior(*self.initialisation(support_x, support_y, query_x, way))
        trajectory = [posterior]
        for k in range(self.steps if steps is None else steps):
            posterior = self.step(
                posterior, prepared, query_y, hyperparameters, min(k, len(self.scale_shift) - 1), known_weights
            )
            trajectory.append(posterior)
        return trajectory

    def point_hyperparameters(self) -> tuple[Tensor, ...]:
        """ψ without sampling: the prior's own, or the mean of q(ψ) of a hierarchical one."""
        return tuple(self.hyper.locs) if self.hyper is not None else self.prior.hyperparameters()

    def step(
        self,
        posterior: Posterior,
        query_x: Tensor,
        query_y: Tensor | None,
        hyperparameters: tuple[Tensor, ...],
        index: int,
        known_weights: Tensor | None = None,
    ) -> Posterior:
        """One synthetic gradient step, equation 9, on prepared features; ``index`` picks the step's learned rates."""
        loc, log_scale = posterior
        rate = self.log_inner_lr[index].exp()
        loc_gradient, log_scale_gradient = self.synthetic_gradient(posterior, query_x, query_y, known_weights)
        if self.beta and self.family is Family.GAUSSIAN:
            rate_gradient = self.prior.kl_gradient(hyperparameters, loc, log_scale)
            loc_gradient = loc_gradient + self.beta * rate_gradient[0]
            log_scale_gradient = log_scale_gradient + self.beta * rate_gradient[1]
        if self.whiten:
            loc_gradient = loc_gradient * self.prior.variance(hyperparameters)
        shift = self.scale_shift[index] if self.inner_samples == 0 else 0.0
        return Posterior(loc - rate * loc_gradient, log_scale - rate * log_scale_gradient - shift)

    def synthetic_gradient(
        self, posterior: Posterior, query_x: Tensor, query_y: Tensor | None, known_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """E_ε Σ_i ξ(ŷ_i) ∂ŷ_i/∂w ∂w(θ, ε)/∂θ for θ = (loc, log_scale), w = loc + exp(log_scale) ε."""
        loc, log_scale = posterior
        if self.inner_samples == 0 or self.family is Family.DELTA:
            return self.weight_gradient(loc, query_x, query_y, known_weights), 0.0
        noise = torch.randn(self.inner_samples, *loc.shape, dtype=loc.dtype, device=loc.device) * log_scale.exp()
        gradient = self.weight_gradient(loc + noise, query_x, query_y, known_weights)
        return gradient.mean(0), (gradient * noise).mean(0)

    def weight_gradient(
        self, weights: Tensor, query_x: Tensor, query_y: Tensor | None, known_weights: Tensor | None = None
    ) -> Tensor:
        """Σ_i ξ(ŷ_i) ∂ŷ_i/∂w: ``[..., tasks, way, D]`` to the same shape."""
        outputs = self.predictor.outputs(query_x, weights)
        if known_weights is not None:
            outputs = torch.cat(
                [self.predictor.outputs(query_x, known_weights).expand(*outputs.shape[:-1], -1), outputs], dim=-1
            )
        needs_labels = getattr(self.gradient, "needs_labels", False)
        cotangent = self.gradient(outputs, query_y) if needs_labels else self.gradient(outputs)
        pull_back = self.predictor.pull_back if self.closed_form else self.predictor.generic_pull_back
        return pull_back(query_x, weights, cotangent[..., -weights.shape[-2] :])
