"""The objective of all of Sibyl: loss = distortion + β · rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import kl_divergence


@dataclass
class RateDistortion:
    """The two terms in nats, site by site; each a differentiable scalar, summed over plates and averaged over particles.

    Attributes:
        distortions: observed site -> −E_q log p.
        rates: latent site -> KL(q ‖ p).
        beta: weight of the rate.
    """

    distortions: dict[str, Tensor] = field(default_factory=dict)
    rates: dict[str, Tensor] = field(default_factory=dict)
    beta: float = 1.0

    @property
    def distortion(self) -> Tensor:
        """Sum over observed sites, nats."""
        return torch.stack(list(self.distortions.values())).sum() if self.distortions else torch.zeros(())

    @property
    def rate(self) -> Tensor:
        """Sum over latent sites, nats."""
        return torch.stack(list(self.rates.values())).sum() if self.rates else torch.zeros(())

    @property
    def loss(self) -> Tensor:
        """distortion + β · rate; with β = 0 the rate is left out, even where it is infinite."""
        return self.distortion + self.beta * self.rate if self.beta else self.distortion


class RateDistortionELBO(TraceMeanField_ELBO):
    """loss = distortion + β · rate, an ELBO in Pyro's family.

        distortion = −E_q Σ_observed log p        rate = Σ_latent KL(q ‖ p)        (nats, summed over plates)

    Use it as Pyro's ELBO-as-module: ``objective = RateDistortionELBO(beta=0.1)(model, guide)``, then
    ``objective(*episode).backward()`` and any ``torch.optim``; ``objective.terms(*episode)`` gives both terms by site. β
    multiplies the rate, and β = 1 is exactly the negative ELBO. In other conventions:

    * ``KL + β_slides · d`` (the slides' formula): β_slides = 1/β, and the loss is divided by β.
    * weight β_table of the KL beside the *mean* loss of n observations (the slides' β-BNN table): β = n · β_table, so that
      their β* = 1/n is β = 1.
    * a ``temperature`` on the posterior is the same up to an overall factor.

    KLs are analytic (or the estimate a distribution registers, see
    :class:`~models.distributions.mixture.GaussianMixture`). Guides must be reparameterised, mean-field in Pyro's sense, and
    have no auxiliary sites, so use the prior's own family rather than ``AutoNormal``. Source: Hu et al. 2019, equation 4;
    "Rate-distortion based Bayesian inference" in the slides.

    Args:
        beta: β ≥ 0.
        monte_carlo: where no KL is registered, estimate E_q[log q − log p] from the draw instead of raising.
        elbo_options: of :class:`pyro.infer.ELBO` (``num_particles``, ``vectorize_particles``, ``max_plate_nesting`` …).

    Raises:
        ValueError: a negative or non-finite β.
        NotImplementedError: no registered KL for a site (unless ``monte_carlo``), an auxiliary guide site, or a site that
            is not reparameterised.
    """

    def __init__(self, *, beta: float = 1.0, monte_carlo: bool = False, **elbo_options) -> None:
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta = {beta} must be a finite number, 0 or more")
        super().__init__(**elbo_options)
        self.beta, self.monte_carlo = beta, monte_carlo

    def __call__(self, model: torch.nn.Module, guide: torch.nn.Module) -> RateDistortionModule:
        return RateDistortionModule(model, guide, self)

    def terms(self, model: torch.nn.Module, guide: torch.nn.Module, *args, **kwargs) -> RateDistortion:
        """Distortion and rate, in nats, averaged over particles."""
        traces = list(self._get_traces(model, guide, args, kwargs))
        total = RateDistortion(beta=self.beta)
        for traced in traces:
            terms = self.trace_terms(*traced)
            for sums, parts in ((total.distortions, terms.distortions), (total.rates, terms.rates)):
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value / self.num_particles
        return total

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
        """Model and guide trace. Only observed sites are scored: KLs need no log-density of the draw."""
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            _check_mean_field_requirement(model_trace, guide_trace)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        if is_validation_enabled():
            for name in model_trace.observation_nodes:
                check_site_shape(model_trace.nodes[name], self.max_plate_nesting)
        return model_trace, guide_trace

    def trace_terms(self, model_trace: Trace, guide_trace: Trace) -> RateDistortion:
        """Both terms of one pair of traces, summed over its plates and vectorised particles."""
        if extra := [name for name in guide_trace.stochastic_nodes if name not in model_trace]:
            raise NotImplementedError(f"auxiliary guide sites {extra}: the rate is no sum of KLs; sample the model's sites")
        terms = RateDistortion(beta=self.beta)
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or name == "_INPUT":
                continue
            if site["is_observed"]:
                terms.distortions[name] = -site["log_prob_sum"]  # plate scale and mask are inside
            elif name in guide_trace:
                terms.rates[name] = self.site_rate(site, guide_trace.nodes[name])
        return terms

    def site_rate(self, model_site: Mapping[str, Any], guide_site: Mapping[str, Any]) -> Tensor:
        """KL(q ‖ p) of one latent site, nats."""
        if not guide_site["fn"].has_rsample:
            raise NotImplementedError(f"site {guide_site['name']!r} of the guide is not reparameterised: {guide_site['fn']}")
        try:
            kl = kl_divergence(guide_site["fn"], model_site["fn"])
        except NotImplementedError:
            if not self.monte_carlo:
                raise
            kl = guide_site["fn"].log_prob(guide_site["value"]) - model_site["fn"].log_prob(guide_site["value"])
        return scale_and_mask(kl, scale=guide_site["scale"], mask=guide_site["mask"]).sum()

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[float, Tensor]:
        loss = self.trace_terms(model_trace, guide_trace).loss
        return torch_item(loss), loss


class RateDistortionModule(ELBOModule):
    """Model, guide and objective as one module; calling it gives the loss, :meth:`terms` its parts."""

    elbo: RateDistortionELBO
    model: Any
    guide: Any

    def terms(self, *args, **kwargs) -> RateDistortion:
        """Distortion and rate of a batch, site by site, nats."""
        return self.elbo.terms(self.model, self.guide, *args, **kwargs)
