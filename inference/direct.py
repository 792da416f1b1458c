"""Traces of programs that can say their sites themselves: the same numbers as Pyro's, without running its handlers.

Pyro follows a program by handlers on every statement, which costs a few milliseconds a call: on small tasks more than all
arithmetic. A guide or model may have, beside ``forward``, a method ``sites`` that gives its statements as values,
:class:`~models.sites.Site`, by name: the guide's from the arguments of its call, the model's from the guide's draws and
these; and ``says_sites``, whether that is all that a call does. Where anything else is asked of a program, such as under Pyro's
``SVI`` or any handler, it runs as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from models.distributions.diagonal import GaussianWeights, draw
from models.sites import Site, says_its_sites


class Hidden(Exception):
    """A program states what its sites do not tell."""


class NothingHidden(Messenger):
    """Inside, no program may sample or have parameters in Pyro's store; what is ``deterministic`` is no matter.

    Raises:
        Hidden: one does.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            raise Hidden

    def _pyro_param(self, msg: Any) -> None:
        raise Hidden


def direct_traces(model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace] | None:
    """Traces of the model replayed on the guide, and of the guide, with the sites alone; ``None`` where they have to be traced:
    the programs do not say their sites, a handler wants to know of them, or shapes are not those that plates would give, which
    Pyro expands or refuses.

    Args:
        args, kwargs: of both programs.
    """
    if am_i_wrapped() or not (says_its_sites(model, *args, **kwargs) and says_its_sites(guide, *args, **kwargs)):
        return None
    try:
        with NothingHidden():
            posteriors = guide.sites(*args, **kwargs)
            if not all(site.is_whole for site in posteriors.values()):
                return None
            drawn = {name: draw(site.distribution) for name, site in posteriors.items()}
            densities = model.sites(drawn, *args, **kwargs)
    except Hidden:
        return None
    same = all(densities[name].distribution.event_shape == site.distribution.event_shape for name, site in posteriors.items())
    whole = same and all(site.is_whole for site in densities.values())
    return (trace_of(densities, drawn), trace_of(posteriors, drawn)) if whole else None


def trace_of(sites: Mapping[str, Site], drawn: Mapping[str, Tensor | GaussianWeights]) -> Trace:
    """A trace of these ``sites``, at their observed values or those ``drawn``; observed ones are scored."""
    trace = Trace()
    for name, (distribution, observed, scale, _) in sites.items():
        trace.add_node(
            name,
            name=name,
            type="sample",
            fn=distribution,
            value=drawn[name] if observed is None else observed,
            is_observed=observed is not None,
            scale=scale,
            mask=None,
            infer={},
        )
        if observed is not None:
            trace.nodes[name]["log_prob_sum"] = (distribution.log_prob(observed) * scale).sum()
    return trace
