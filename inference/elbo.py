"""The objective of all of Sibyl: loss = distortion + β · rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions import validation_enabled as validate_distributions
from pyro.distributions.util import is_validation_enabled as validating_distributions
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.nn.module import _Context
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import kl_divergence

from inference.direct import direct_traces
from models.distributions.diagonal import DeferredDraws, GaussianWeights
from models.precision import full_precision


@dataclass
class RateDistortion:
    """The two terms in nats, site by site; each a differentiable scalar, summed over plates and averaged over particles.

    Attributes:
        distortions: observed site -> −E_q log p.
        rates: latent site -> KL(q ‖ p). Where the guide has auxiliary sites, those are entries of their own (log q) and the
            model's sites have what remains (−log p); their sum is the rate.
        beta: weight of the rate.
    """

    distortions: dict[str, Tensor] = field(default_factory=dict)
    rates: dict[str, Tensor] = field(default_factory=dict)
    beta: float = 1.0

    @property
    def distortion(self) -> Tensor:
        """Sum over observed sites, nats."""
        return total(self.distortions, self.rates)

    @property
    def rate(self) -> Tensor:
        """Sum over latent sites, nats."""
        return total(self.rates, self.distortions)

    @property
    def loss(self) -> Tensor:
        """distortion + β · rate; with β = 0 the rate is left out, even where it is infinite."""
        return self.distortion + self.beta * self.rate if self.beta else self.distortion


def total(parts: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Tensor:
    """Sum of the parts; where there are none a zero of the others' kind, so that it lies on their device."""
    if parts:
        return torch.stack(list(parts.values())).sum()
    return next(iter(others.values())).new_zeros(()) if others else torch.zeros(())


class RateDistortionELBO(TraceMeanField_ELBO):
    """loss = distortion + β · rate, an ELBO in Pyro's family.

        distortion = −E_q Σ_observed log p        rate = Σ_latent KL(q ‖ p)        (nats, summed over plates)

    Use it as Pyro's ELBO-as-module: ``objective = RateDistortionELBO(beta=0.1)(model, guide)``, then
    ``objective(*episode).backward()`` and any ``torch.optim``; ``objective.terms(*episode)`` gives both terms by site. Such a
    step never waits for the device. Pyro's ``SVI`` takes the objective too. β multiplies the rate, and β = 1 is exactly the
    negative ELBO. In other conventions:

    * ``KL + β_slides · d`` (the slides' formula): β_slides = 1/β, and the loss is divided by β.
    * weight β_table of the KL beside the *mean* loss of n observations (the slides' β-BNN table): β = n · β_table, so that
      their β* = 1/n is β = 1.
    * a ``temperature`` on the posterior is the same up to an overall factor.

    How the rate is computed, site by site:

    * the guide draws the model's own site: the analytic KL, or the estimate a distribution registers (see
      :class:`~models.distributions.mixture.GaussianMixture`). As in :class:`pyro.infer.TraceMeanField_ELBO` the guide must be
      mean-field. Where no KL is registered, with ``monte_carlo``: sampled, log q − log p at the draw.
    * the guide computes the site from auxiliary sites, as Pyro's autoguides do (``AutoNormal``, ``AutoMultivariateNormal``,
      ``AutoLowRankMultivariateNormal``, ``AutoIAFNormal``, ``AutoLaplaceApproximation`` …): always sampled, log q of the
      guide's own sites, Jacobians included, less log p of the model's. Any dependence among latents is allowed.
    * a point mass (``Delta``): −log p at the point; its entropy, −∞, is left out.
    * the model's site is not in the guide: the posterior is the prior, and the rate 0.

    A guide site that is not reparameterised, such as a discrete one, is refused, for the KL's gradient would lack its
    score-function term: take Pyro's ``TraceGraph_ELBO`` or ``TraceEnum_ELBO``.

    Source: Hu et al. 2019, equation 4; "Rate-distortion based Bayesian inference" in the slides.

    Args:
        beta: β ≥ 0.
        monte_carlo: where no KL is registered, estimate E_q[log q − log p] from the draw instead of raising.
        elbo_options: of :class:`pyro.infer.ELBO` (``num_particles``, ``vectorize_particles``, ``max_plate_nesting`` …).

    Raises:
        ValueError: a negative or non-finite β, or a guide site that is neither the model's nor marked auxiliary.
        NotImplementedError: no registered KL for a site (unless ``monte_carlo``), or a guide site that is not reparameterised.
    """

    def __init__(self, *, beta: float = 1.0, monte_carlo: bool = False, **elbo_options: Any) -> None:
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta = {beta} must be a finite number, 0 or more")
        super().__init__(**elbo_options)
        self.beta, self.monte_carlo = beta, monte_carlo

    def __call__(self, model: torch.nn.Module, guide: torch.nn.Module) -> RateDistortionModule:
        return RateDistortionModule(model, guide, self)

    def terms(self, model: Any, guide: Any, *args, **kwargs) -> RateDistortion:
        """Distortion and rate, in nats, averaged over particles."""
        mean = RateDistortion(beta=self.beta)
        for traced in self._get_traces(model, guide, args, kwargs):
            terms = self.trace_terms(*traced)
            for sums, parts in ((mean.distortions, terms.distortions), (mean.rates, terms.rates)):
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value / self.num_particles
        return mean

    def differentiable_loss(self, model: Any, guide: Any, *args, **kwargs) -> Tensor:
        """The loss, averaged over particles. Unlike Pyro's it reads no number back from the device."""
        traces = self._get_traces(model, guide, args, kwargs)
        return sum(self.trace_terms(*traced).loss / self.num_particles for traced in traces)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
        """Model and guide trace. Only observed sites are scored: KLs need no log-density of the draw."""
        known = direct_traces(model, guide, args, kwargs)
        return self._follow(model, guide, args, kwargs) if known is None else known

    def _follow(self, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
        """The traces by Pyro's handlers, for any programs."""
        with DeferredDraws():
            model_trace, guide_trace = run(model, guide, args, kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            check_if_enumerated(guide_trace)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        watched = pyro.settings.get("validate_poutine") and validating_distributions()
        with pyro.settings.context(validate_poutine=watched):  # a check for NaN reads a number back
            model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        if is_validation_enabled():
            _check_mean_field_requirement(model_trace, guide_trace)
            for name in model_trace.observation_nodes:
                check_site_shape(model_trace.nodes[name], self.max_plate_nesting)
        return model_trace, guide_trace

    def trace_terms(self, model_trace: Trace, guide_trace: Trace) -> RateDistortion:
        """Both terms of one pair of traces, summed over its plates and vectorised particles."""
        terms = RateDistortion(beta=self.beta)
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                terms.distortions[name] = -site["log_prob_sum"]  # plate scale and mask are inside
            elif name in guide_trace:
                terms.rates[name] = self.site_rate(site, guide_trace.nodes[name])
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and name not in model_trace:
                terms.rates[name] = auxiliary_rate(site)
        return terms

    def site_rate(self, model_site: Mapping[str, Any], guide_site: Mapping[str, Any]) -> Tensor:
        """Rate of one latent site, of the model's trace (``model_site``) and the guide's (``guide_site``), nats: KL(q ‖ p),
        or what a draw says of it."""
        check_reparameterised(guide_site)
        q, value = guide_site["fn"], guide_site["value"]
        if isinstance(innermost(q), Delta):  # the KL that Pyro registers for it leaves out the Jacobian in its log-density
            log_q = q.log_density if isinstance(q, Delta) else q.log_prob(value)
            return scaled_sum(log_q, guide_site) - scaled_sum(model_site["fn"].log_prob(value), model_site)
        device = (value.loc if isinstance(value, GaussianWeights) else value).device
        try:
            with full_precision(device):  # a sum over a million weights needs full precision
                return scaled_sum(kl_divergence(q, model_site["fn"]), guide_site)
        except NotImplementedError:
            if not self.monte_carlo:
                raise
        draw = q.rsample() if isinstance(value, GaussianWeights) else value
        return scaled_sum(q.log_prob(draw), guide_site) - scaled_sum(model_site["fn"].log_prob(draw), model_site)

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[float, Tensor]:
        loss = self.trace_terms(model_trace, guide_trace).loss
        return torch_item(loss), loss


def run(model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
    """Traces of the model replayed on the guide, and of the guide, called with ``args`` and ``kwargs``."""
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, Messenger):  # guides such as Pyro's AutoNormalMessenger run the model themselves
        guide(*args, **kwargs)
        return unwrapped.get_traces()  # type: ignore[attr-defined]
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs), guide_trace


def auxiliary_rate(site: Mapping[str, Any]) -> Tensor:
    """log q at the draw of a site that the guide alone has, nats.

    Raises:
        ValueError: it is not marked as auxiliary.
    """
    if not site["infer"].get("is_auxiliary"):
        raise ValueError(
            f"site {site['name']!r} of the guide is not in the model: mark it with infer={{'is_auxiliary': True}} if the "
            "model's sites are computed from it"
        )
    check_reparameterised(site)
    return scaled_sum(site["fn"].log_prob(site["value"]), site)


def check_reparameterised(site: Mapping[str, Any]) -> None:
    """Refuse a site of the guide whose draws have no gradient."""
    if not site["fn"].has_rsample:
        raise NotImplementedError(
            f"site {site['name']!r} of the guide is not reparameterised ({site['fn']}): use Pyro's TraceGraph_ELBO, or "
            "TraceEnum_ELBO for a discrete site"
        )


def innermost(distribution: Any) -> Any:
    """The distribution under wrappers such as ``Independent`` and masks."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def scaled_sum(nats: Tensor | float, site: Mapping[str, Any]) -> Tensor:
    """Sum of ``nats`` over the plates, with their scale and the site's mask."""
    if not isinstance(nats, Tensor):  # Pyro's KL of sites that are masked out is a plain 0
        nats = site["value"].new_full(site["fn"].batch_shape, nats)
    return scale_and_mask(nats, scale=site["scale"], mask=site["mask"]).sum()


class RateDistortionModule(ELBOModule):
    """Model, guide and objective as one module; calling it gives the loss, :meth:`terms` its parts.

    Parameters are those of the modules, as in PyTorch: Pyro's parameter store is neither read nor written. On the CPU Pyro's
    checks of values (``pyro.enable_validation``) are as they are set outside. On an accelerator each check would wait for the
    device, so distributions are not checked there: run a doubtful batch on the CPU.
    """

    elbo: RateDistortionELBO
    model: Any
    guide: Any

    def forward(self, *args, **kwargs) -> Tensor:
        with local_parameters(), self.without_waiting():
            return super().forward(*args, **kwargs)

    def terms(self, *args, **kwargs) -> RateDistortion:
        """Distortion and rate of a batch, site by site, nats."""
        with local_parameters(), self.without_waiting():
            return self.elbo.terms(self.model, self.guide, *args, **kwargs)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Inside, nothing is read back from an accelerator to check it."""
        parameter = next(self.parameters(), None)
        on_cpu = parameter is None or parameter.device.type == "cpu"
        with validate_distributions(on_cpu and validating_distributions()):
            yield


@contextmanager
def local_parameters() -> Iterator[None]:
    """Inside, the parameters of every PyroModule are its own, whatever ``pyro.settings`` says outside.

    With Pyro's default settings two modules share the parameters whose names agree, for they live in one global store, and a
    frozen parameter is trainable once it has been read. Pyro's ``module_local_params`` mends both, but its modules prepare for
    it as they are built: one that was built without it has no place for its state. Here it gets one when it is first used.
    """
    prepared = hasattr(_Context, "param_state")  # inside another objective
    if not prepared:
        _Context.param_state = OwnState()  # type: ignore[assignment]
    try:
        with pyro.settings.context(module_local_params=True):
            yield
    finally:
        if not prepared:
            del _Context.param_state  # type: ignore[misc]


class OwnState:
    """Descriptor of ``param_state`` in Pyro's ``_Context``, for modules that were built without one."""

    def __get__(self, context: Any, owner: type) -> Any:
        return self if context is None else context.__dict__.setdefault("param_state", {"params": {}, "constraints": {}})
