"""Guides that unroll an optimizer: K steps of descent on the posterior of every task in the batch."""

from __future__ import annotations

import copy
from enum import StrEnum
from functools import partial, reduce
from typing import Any, NamedTuple

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from guides.tasks.families import Family, PosteriorParameters
from guides.tasks.gate import PriorGate
from guides.tasks.hyper import HyperGuide
from guides.tasks.rules import Pull, Rule
from models.plates import num_classes, task_plate
from models.sites import Site
from models.tasks.predictors import Predictor
from models.tasks.priors import Prior


class Evidence(StrEnum):
    """Which items the inner gradient is taken on."""

    QUERIES = "queries"
    """The unlabelled queries: transductive."""
    SUPPORT = "support"
    """The labelled support: inductive."""


class Reduction(StrEnum):
    """How the inner gradient counts its items."""

    SUM = "sum"
    """Each as one: the gradient of the tasks' own objective."""
    MEAN = "mean"
    """All of them together as one, so that a step is as long whatever their number: the inner loss of MAML."""


class Part(NamedTuple):
    """Items that the inner gradient is taken on.

    Attributes:
        items: prepared by the predictor, ``[tasks, n, *item]``.
        labels: ``[tasks, n]``, ``None`` where they are hidden.
        gradient: v of these items, from their outputs and labels.
    """

    items: Tensor
    labels: Tensor | None
    gradient: nn.Module


class UnrolledGuide(PyroModule):
    """q_θ(w_t) with θ found by unrolling, from θ⁰ = λ(support, queries),

        θ ← rule(θ, E_ε Σ_{i∈A} v_i ∂ŷ_i/∂w ∂w(θ, ε)/∂θ, ∇_θ KL(q_θ ‖ p_ψ)).

    A method is a choice of start λ, items A, gradient v, update rule and family. All tasks are unrolled together and never mix;
    the guide is differentiable through all steps. K = 0 is the start alone.

    Source: Hu et al. 2019, equation 9 (A the queries, v = ξ); Finn et al. 2017, equation 1 (A the support, v exact, the mean
    over A, q a delta).

    Args:
        prior, predictor: the model's own modules (shared parameters).
        start: λ, see :mod:`guides.tasks.starts`.
        gradient: v, from outputs and labels (``None`` where they are hidden) to ∂(−log p)/∂ŷ or what stands in for it, see
            :mod:`guides.tasks.gradient_networks`.
        rule: how θ moves, see :mod:`guides.tasks.rules`.
        steps: K.
        on: A.
        anchor: v of the support where A is the queries; the support is then part of A, too. ``None``: it is not.
        beta: weight of the rate in the inner steps; the same β as in the objective.
        inner_samples: draws of ε in each step; with 0 the expectation is taken at the mean.
        family: of the posterior.
        first_order: detach the inner gradients of the distortion, so that no second derivatives of the network are taken; the
            rate's gradient is a closed form and keeps its own.
        closed_form: use the predictor's closed-form pull-back; ``False`` takes the generic one.
        hyper: q(ψ) of a hierarchical prior.
        num_tasks: as in :class:`~models.tasks.model.EmpiricalBayesModel`.
        reduction: over A, whether Σ_i is that or a mean; the rate's gradient stays as it is.
        gate: how far θ⁰ departs from the prior; λ alone where it is not given.

    Raises:
        ValueError: negative ``steps`` or ``inner_samples``, or an ``anchor`` where A is the support already.
    """

    spread = False  # inner gradients taken at the mean are of E ŷ under the posterior, as far as it has a closed form
    every = False  # read after every step, not after the last alone

    def __init__(
        self,
        prior: Prior,
        predictor: Predictor,
        start: nn.Module,
        gradient: nn.Module,
        rule: Rule,
        *,
        steps: int = 3,
        on: Evidence | str = Evidence.QUERIES,
        anchor: nn.Module | None = None,
        beta: float = 1.0,
        inner_samples: int = 0,
        family: Family | str = Family.GAUSSIAN,
        first_order: bool = False,
        closed_form: bool = True,
        hyper: HyperGuide | None = None,
        num_tasks: int | None = None,
        reduction: Reduction | str = Reduction.SUM,
        gate: PriorGate | None = None,
    ) -> None:
        super().__init__()
        if steps < 0 or inner_samples < 0:
            raise ValueError(f"steps = {steps} and inner_samples = {inner_samples} must not be negative")
        if anchor is not None and Evidence(on) is not Evidence.QUERIES:
            raise ValueError("the inner gradient is taken on the support already: leave out the anchor")
        self.prior, self.predictor, self.hyper = prior, predictor, hyper
        self.start, self.gradient, self.rule = start, gradient, rule
        self.steps, self.on, self.beta, self.inner_samples = steps, Evidence(on), beta, inner_samples
        self.family, self.first_order, self.closed_form = Family(family), first_order, closed_form
        self.num_tasks, self.gate, self.anchor, self.reduction = num_tasks, gate, anchor, Reduction(reduction)

    @property
    def saw_labels(self) -> bool:
        """Whether the posterior has seen the query labels, as the exact-gradient reference has."""
        return self.on is Evidence.QUERIES and bool(getattr(self.gradient, "needs_labels", False)) and self.steps > 0

    def after(self, steps: int) -> UnrolledGuide:
        """The same guide, sharing all modules, read after another number of steps."""
        other = copy.copy(self)
        other.steps = steps
        return other

    def at_every_step(self) -> UnrolledGuide:
        """The same guide, sharing all modules, read after each of its steps: its site ``weights`` has the plate ``steps`` of
        :class:`~guides.tasks.every_step.EveryStep` on the left, ``steps + 1`` posteriors from one unrolling."""
        other = copy.copy(self)
        other.every = True
        return other

    def forward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> PosteriorParameters:
        """Sample the site ``weights`` (event ``[rows, D]``) in the plate ``tasks``; shapes as in the model."""
        hyperparameters = self.hyper() if self.hyper is not None else self.prior.hyperparameters()
        parameters = self.read(self.unroll(support_x, support_y, query_x, query_y, way, hyperparameters=hyperparameters))
        with task_plate(query_x, self.num_tasks if self.training else None):
            pyro.sample("weights", self.family.distribution(parameters))
        return parameters

    def says_sites(self, *args: Any, **kwargs: Any) -> bool:
        """Whether :meth:`sites` says all of a call: not where it samples hyperparameters too, or scales the tasks up."""
        return self.hyper is None and not (self.training and self.num_tasks is not None)

    def sites(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
    ) -> dict[str, Site]:
        """What a call samples, by name; arguments as of the call."""
        parameters = self.read(self.unroll(support_x, support_y, query_x, query_y, way))
        return {"weights": Site(self.family.distribution(parameters), plates=(query_x.shape[0], 1))}

    def stay_at_prior(self) -> None:
        """Make every posterior the prior, whatever the task and the number of steps; a mixture becomes one Gaussian for it.

        Raises:
            ValueError: the guide has no gate.
        """
        if self.gate is None:
            raise ValueError("a guide without a gate cannot stay at the prior")
        self.gate.close()
        self.prior.merge()
        self.rule.stand_still()

    def read(self, trajectory: list[PosteriorParameters]) -> PosteriorParameters:
        """θ of the last step; of all steps, stacked in front, where the guide is read after every one."""
        return PosteriorParameters(*map(torch.stack, zip(*trajectory, strict=True))) if self.every else trajectory[-1]

    def unroll(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        way: int | None = None,
        *,
        hyperparameters: tuple[Tensor, ...] | None = None,
    ) -> list[PosteriorParameters]:
        """θ⁰, θ¹, …, θᴷ for tasks of shape ``[tasks, n, *item]``.

        Args:
            hyperparameters: ψ, where it was sampled; the prior's own otherwise (of a hierarchical prior: the mean of q(ψ)).

        Returns:
            ``steps + 1`` sets of parameters.
        """
        if hyperparameters is None:
            hyperparameters = self.point_hyperparameters()
        # sampled hyperparameters carry the plates' dimensions, [..., 1, 1, D]; the tasks' own dimension is enough here
        hyperparameters = tuple(h.squeeze(-2) if self.hyper is not None and h.dim() > 1 else h for h in hyperparameters)
        way = num_classes(support_y) if way is None else way
        parameters = self.begin(support_x, support_y, query_x, self.predictor.rows(way), hyperparameters)
        return self.descend(parameters, support_x, support_y, query_x, query_y, hyperparameters=hyperparameters)

    def descend(
        self,
        parameters: PosteriorParameters,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        *,
        hyperparameters: tuple[Tensor, ...],
    ) -> list[PosteriorParameters]:
        """:meth:`unroll` from θ⁰ = ``parameters``, ``[..., tasks, rows, D]``, in place of λ's; with ψ in
        ``hyperparameters``."""
        evidence = self.evidence(support_x, support_y, query_x, query_y, hyperparameters) if self.steps else []
        scales = self.prior.variance(hyperparameters), self.prior.narrowest(hyperparameters)
        trajectory = [parameters]
        for k in range(self.steps):
            parameters = self.step(parameters, evidence, hyperparameters, scales, k)
            trajectory.append(parameters)
        return trajectory

    def evidence(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor | None = None,
        hyperparameters: tuple[Tensor, ...] = (),
    ) -> list[Part]:
        """A, with what each part pulls by; arguments as in :meth:`unroll`, with ψ in ``hyperparameters``. A support without
        items is no part."""
        prepare = self.predictor.prepare
        if self.on is Evidence.SUPPORT:
            return [Part(prepare(support_x), support_y, self.gradient)]
        parts = [Part(prepare(query_x), query_y, self.gradient)]
        if self.anchor is not None and support_x.shape[1]:
            parts.append(Part(prepare(support_x), support_y, self.anchor))
        return parts

    def begin(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, rows: int, hyperparameters: tuple[Tensor, ...]
    ) -> PosteriorParameters:
        """θ⁰ of ``rows`` rows: λ, held back by the gate; arguments as in :meth:`unroll`, with ψ in ``hyperparameters``."""
        parameters = PosteriorParameters(*self.start(support_x, support_y, query_x, rows))
        if self.gate is None:
            return parameters
        return self.gate(parameters, PosteriorParameters(*self.prior.moments(hyperparameters)))

    def point_hyperparameters(self) -> tuple[Tensor, ...]:
        """ψ without sampling: the prior's own, or the mean of q(ψ) of a hierarchical one."""
        return tuple(self.hyper.locs) if self.hyper is not None else self.prior.hyperparameters()

    def step(
        self,
        parameters: PosteriorParameters,
        evidence: list[Part],
        hyperparameters: tuple[Tensor, ...],
        scales: tuple[Tensor, Tensor | None],
        index: int,
    ) -> PosteriorParameters:
        """θ after one step on the ``evidence``; ``index`` picks the step's own numbers, ``hyperparameters`` are ψ of the prior,
        and ``scales`` its variance and narrowest one."""

        spread = (2 * parameters.log_scale).exp() if self.spread and not self.inner_samples and self.family.has_rate else None

        def gradient(weights: Tensor) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.first_order):
                pulled = reduce(torch.add, (self.weight_gradient(weights, part, spread) for part in evidence))
                if self.reduction is Reduction.SUM:
                    return pulled
                return pulled / max(1, sum(part.items.shape[1] for part in evidence))

        data = self.family.expected_gradient(gradient, parameters, self.inner_samples)
        variance, narrowest = scales
        pull = Pull(data, self.rate_gradient(parameters, hyperparameters), variance, self.rate_weight(evidence), narrowest)
        return self.rule(index, parameters, pull)

    def rate_gradient(
        self, parameters: PosteriorParameters, hyperparameters: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor] | None:
        """∇_θ KL(q_θ ‖ p_ψ) for both ``parameters``, ψ being the ``hyperparameters``; ``None`` where there is no rate."""
        return self.prior.kl_gradient(hyperparameters, *parameters) if self.beta and self.family.has_rate else None

    def rate_weight(self, evidence: list[Part]) -> Tensor | float:
        """Of the rate beside the distortion of the ``evidence`` in a step: β."""
        return self.beta

    def weight_gradient(self, weights: Tensor, part: Part, variance: Tensor | None = None) -> Tensor:
        """Σ_i v_i ∂ŷ_i/∂w over the items of a ``part``: ``[..., tasks, rows, D]`` to the same shape; of E ŷ, where the
        ``weights`` are means of draws of this ``variance``."""
        predictor, (items, labels, gradient) = self.predictor, part
        outputs, pull_back = predictor.linearised(items, weights, variance)
        if not self.closed_form and variance is None:
            pull_back = partial(predictor.generic_pull_back, items, weights)
        return pull_back(gradient(outputs, labels))
